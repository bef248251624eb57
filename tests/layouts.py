"""Small collections in the documented layouts of the public ones, written by the tests."""

import gzip
from pathlib import Path

import cv2
import numpy as np

from vlm.data.ingest.readers.common import CHEXPERT_LABELS


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(len(str(path))).integers(0, 255, (12, 10), dtype=np.uint8))


def nih(root: Path) -> Path:
    rows = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
            "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"]  # fmt: skip
    for i in range(24):
        found = ("Cardiomegaly|Effusion", "No Finding", "Hernia")[i % 3]
        age = {5: "414", 8: "0", 9: "058Y", 10: "006M", 11: "036D"}.get(i, str(20 + i))
        found = "" if i == 13 else found
        rows.append(f"{i:08d}_000.png,{found},0,{i},{age},{'MF'[i % 2]},PA,2682,2749,0.14,0.14")
        if i != 7:
            picture(root / f"images_{1 + i % 2:03d}" / "images" / f"{i:08d}_000.png")
    (root / "Data_Entry_2017.csv").write_text("\n".join(rows) + "\n")
    (root / "test_list.txt").write_text("\n".join(f"{i:08d}_000.png" for i in range(18, 24)))
    return root


def chexpert(root: Path) -> Path:
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *CHEXPERT_LABELS]
    for name, people in (("train", range(12)), ("valid", range(64541, 64545))):
        rows = [",".join(header)]
        for i in people:
            side = "lateral" if i in (3, 64544) else "frontal"
            path = f"{name}/patient{i:05d}/study1/view1_{side}.jpg"
            labels = {"Edema": ("1.0", "-1.0", "", "0.0")[i % 4]}
            cells = [f"CheXpert-v1.0-small/{path}", "Female" if i % 2 else "Unknown", str(0 if i == 4 else 40 + i % 40),
                     side.title(), "AP", "", *(labels.get(label, "") for label in CHEXPERT_LABELS)]  # fmt: skip
            rows.append(",".join(cells))
            picture(root / path)
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return root


def indiana(root: Path) -> Path:
    folder = root / "ecgen-radiology"
    folder.mkdir(parents=True)
    for i in range(1, 9):
        name = f"CXR{i}_1_IM-{i:04d}"
        findings = "" if i == 4 else "The heart is normal in size."
        impression = "" if i == 4 else "No acute disease."
        code = "normal" if i % 2 else "Cardiomegaly/mild"
        (folder / f"{i}.xml").write_text(
            f'<?xml version="1.0"?><eCitation><MedlineCitation><Article><Abstract>'
            f'<AbstractText Label="INDICATION">Cough</AbstractText>'
            f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
            f'<AbstractText Label="IMPRESSION">{impression}</AbstractText></Abstract></Article></MedlineCitation>'
            f"<MeSH><major>{code}</major></MeSH>"
            f'<parentImage id="{name}-1001"/><parentImage id="{name}-2001"/></eCitation>'
        )
        for part in ("1001", "2001"):
            if i != 6:
                picture(root / "NLMCXR_png" / f"{name}-{part}.png")
    return root


def mimic(root: Path) -> Path:
    """Subject 10000001 has two ED stays; study 50000001 falls into the first, 50000002 into none."""
    base = root / "cxr"
    meta, split = (
        ["dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime"],
        ["dicom_id,study_id,subject_id,split"],
    )
    labels = ["subject_id,study_id," + ",".join([*CHEXPERT_LABELS, "No Finding"])]
    studies = [("10000001", "50000001", "21800506", "213014.531"), ("10000001", "50000002", "21801001", "10101"),
               ("10000002", "50000003", "21800507", "120000")]  # fmt: skip
    for number, (subject, study, date, time) in enumerate(studies):
        folder = f"files/p{subject[:2]}/p{subject}/s{study}"
        for view in ("PA", "AP", "LATERAL"):
            dicom = f"{study}-{view.lower()}"
            meta.append(f"{dicom},{subject},{study},{view},{date},{time}")
            split.append(f"{dicom},{study},{subject},{('train', 'train', 'test')[number]}")
            picture(base / folder / f"{dicom}.jpg")
        labels.append(
            f"{subject},{study}," + ",".join("1.0" if label == "Edema" else "" for label in CHEXPERT_LABELS) + ","
        )
        (base / f"{folder}.txt").write_text(
            "                FINAL REPORT\n EXAMINATION:  CHEST\n\n INDICATION:  ___F with cough\n\n FINDINGS: \n \n "
            "Heart size\n is normal.\n \n IMPRESSION: \n \n No pneumonia.\n"
        )
    for name, rows in (("metadata", meta), ("split", split), ("chexpert", labels)):
        (base / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress(("\n".join(rows) + "\n").encode()))
    ed = root / "ed"
    ed.mkdir()
    (ed / "edstays.csv").write_text(
        "subject_id,hadm_id,stay_id,intime,outtime\n"
        "10000001,,30000001,2180-05-06 19:17:00,2180-05-06 23:30:00\n"
        "10000002,,30000002,2180-05-07 11:00:00,2180-05-07 15:00:00\n"
    )
    columns = "temperature,heartrate,resprate,o2sat,sbp,dbp"
    (ed / "triage.csv").write_text(
        f"subject_id,stay_id,{columns},pain,acuity,chiefcomplaint\n"
        "10000001,30000001,98.4,70,16,97,106,63,0,3,x\n10000002,30000002,99.5,90,18,95,120,70,0,2,x\n"
    )
    (ed / "vitalsign.csv").write_text(
        f"subject_id,stay_id,charttime,{columns},rhythm,pain\n"
        "10000001,30000001,2180-05-06 21:00:00,,80,,96,110,65,,\n"
        "10000001,30000001,2180-05-06 22:00:00,104.0,120,30,80,90,40,,\n"
    )
    return root


def image_folder(root: Path) -> Path:
    for split, count in (("train", 6), ("test", 2)):
        rows = ["file_name,who,glucose,edema,text"]
        for i in range(count):
            picture(root / split / f"{i}.png")
            rows.append(f"{i}.png,{split}{i},{5 + i},{i % 2},Clear lungs.")
        (root / split / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def chexpert_plus(root: Path) -> Path:
    rows = ["path_to_image,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,section_clinical_history,"
            "section_findings,section_impression,age,sex,split"]  # fmt: skip
    for patient, order, side, plane, split in (("patient1", 1, "Frontal", "PA", "train"),
                                               ("patient1", 1, "Lateral", "", "train"),
                                               ("patient1", 2, "Frontal", "AP", "train"),
                                               ("patient2", 1, "Frontal", "AP", "valid")):  # fmt: skip
        path = f"{split}/{patient}/study{order}/view1_{side.lower()}.jpg"
        rows.append(f"{path},{side},{plane},{patient},{order},Cough.,Heart {order}.,Clear {order}.,61,Male,{split}")
        picture(root / "PNG" / path.replace(".jpg", ".png"))
    (root / "df_chexpert_plus_240401.csv").write_text("\n".join(rows) + "\n")
    return root


def padchest(root: Path) -> Path:
    rows = ["ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,Report,Labels"]
    for name, date, study, patient, view, labels in (
        ("a.png", "20140915", "s1", "p1", "PA", "['cardiomegaly', 'pleural effusion']"),
        ("al.png", "20140915", "s1", "p1", "L", "['cardiomegaly', 'pleural effusion']"),
        ("b.png", "20141015", "s2", "p1", "AP_horizontal", "['normal']"),
        ("c.png", "20150101", "s3", "p2", "PA", ""),
        ("d.png", "20150101", "s4", "p3", "COSTAL", "['normal']"),
        ("e.png", "20150101", "s5", "p4", "PA", "['normal']"),
    ):
        rows.append(f'{name},0,{date},{study},{patient},1950.0,M,{view},informe {study},"{labels}"')
        if name != "e.png":
            picture(root / "0" / name)
    (root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").write_text("\n".join(rows) + "\n")
    return root


def rexgradient(root: Path) -> Path:
    header = "id,PatientID,ImagePath,ImageViewPosition,StudyDate,PatientAge,PatientSex,Indication,Findings,Impression"
    for split, rows in (
        ("train", [("s1", "p1", "['../deid_png/a.png', '../deid_png/al.png']", "['PA', 'LATERAL']", "20200101"),
                   ("s2", "p1", "['../deid_png/b.png', '../deid_png/no.png']", "['AP', 'PA']", "20200201")]),
        ("test", [("s3", "p2", "['../deid_png/c.png']", "['PA']", "20200101"),
                  ("s4", "p2", "['../deid_png/none.png']", "['PA']", "20200101")]),
    ):  # fmt: skip
        lines = [f'{i},{p},"{paths}","{views}",{date},061Y,M,Cough.,Heart {i}.,Clear {i}.'
                 for i, p, paths, views, date in rows]  # fmt: skip
        (root / "metadata").mkdir(parents=True, exist_ok=True)
        (root / "metadata" / f"{split}_metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    for name in ("a", "al", "b", "c"):
        picture(root / "deid_png" / f"{name}.png")
    return root


def vindr(root: Path) -> Path:
    """Three radiologists of each training image but the last, which has two; a consensus of the test."""
    from vlm.data.ingest.readers.vindr_cxr import LABELS

    votes = {"aa": ("Edema ILD", "Edema", "Edema"), "bb": ("", "Nodule/Mass", ""), "cc": ("ILD", "ILD", ""),
             "dd": ("COPD", "")}  # fmt: skip
    rows = [["image_id", "rad_id", *LABELS[:-1], "Other diseases", "No finding"]]
    for image, said in votes.items():
        for reader, words in enumerate(said):
            named = ["1" if name in words.split() else "0" for name in LABELS]
            rows.append([image, f"R{reader}", *named, "0" if words else "1"])
        if image != "bb":
            picture(root / "train" / f"{image}.png")
    tests = [["image_id", *LABELS, "No finding"]]  # the last label has another name there
    tests += [[image, *["1.0" if name == "Other disease" else "0.0" for name in LABELS], "0"] for image in ("ee", "ff")]
    (root / "annotations").mkdir(parents=True)
    for split, lines in (("train", rows), ("test", tests)):
        text = "\n".join(",".join(line) for line in lines)
        (root / "annotations" / f"image_labels_{split}.csv").write_text(f"{text}\n")
    for image in ("ee", "ff"):
        picture(root / "test" / f"{image}.png")
    return root
