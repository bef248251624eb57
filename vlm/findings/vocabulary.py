"""Vocabulary of chest radiograph reports: findings, negation, uncertainty, sides and zones.

Every pattern is matched inside one sentence, in lower case. The gaps between a structure and its change are short on
purpose: they belong together only when they stand close.
"""
# fmt: off


def any_of(*alternatives: str) -> str:
    """Join alternatives into one pattern."""
    return "|".join(alternatives)


FINDINGS: dict[str, str] = {
    "cardiomegaly": any_of(
        r"cardiomegaly", r"megalocardia",
        (r"(?:heart|cardiac|cardio[ -]?(?:mediastinal|pericardial"
         r"|vascular))\b[\w ,-]{0,45}?\b(?:enlarge\w*|large|big)\b"),
        (r"\b(?:enlarge\w*|large|increased?|prominent|widened)\b[\w -]{0,25}?\b(?:heart|cardiac"
         r"|cardio\w*)\b(?! (?:and )?(?:pulmonary )?vascul)"),
        r"\bborderline (?:in )?(?:heart|cardiac)(?: size)?",
        r"(?:heart|cardiac)(?: size| silhouette)? (?:is |are )?(?:in the )?borderline",
        r"\b(?:ventricular|atrial) enlargement",
    ),
    "pleural_effusion": any_of(
        r"(?<!pericardial )effusions?", r"hydrothora\w+", r"hemothora\w+", r"hydropneumothora\w+", r"empyema",
        r"pleural (?:based )?fluid", r"fluid in the (?:\w+ )?(?:pleural|fissure)",
    ),
    "pneumothorax": any_of(
        r"(?:hydro)?pneumothora(?:x|ces)\w*", r"pleural air",
    ),
    "atelectasis": any_of(
        r"atelecta\w+", r"(?:lobe|lobar|lung|segmental) collapse",
        r"collapsed? (?:of )?(?:the )?[\w ]{0,20}?(?:lung|lobe)", r"volume loss", r"loss of volume",
    ),
    "consolidation": any_of(
        r"consolidat\w+", r"infiltrat\w+", r"pneumonias?", r"pneumonitis", r"bronchopneumonia",
        r"air[ -]?space (?:disease|opaci\w+|process|densit\w+|filling)", r"ground[ -]glass",
    ),
    "opacity": any_of(
        r"opaci\w+", r"densit(?:y|ies)", r"shadow(?:s|ing)?", r"infiltration",
    ),
    "pulmonary_edema": any_of(
        r"edema", r"(?:vascular|venous|pulmonary|vasculature|hilar|interstitial)[\w ]{0,12}?congestion",
        r"congestion\b", r"congestive (?:heart )?failure", r"\bchf\b", r"heart failure", r"fluid overload",
        r"(?:pulmonary |central |lung )?vascul\w+ (?:is |are |appears? )?[\w ]{0,12}?(?:engorge\w*|indistinct)",
        r"engorge\w+", r"cephalization",
    ),
    "nodule": any_of(
        r"nodul\w+", r"mass(?:es)?\b", r"masslike", r"tumou?rs?", r"neoplas\w+", r"metasta\w+",
    ),
    "granuloma": any_of(
        r"granulom\w+", r"calcified (?:pulmonary |lung )?nodules?",
    ),
    "hyperinflation": any_of(
        r"hyper[ -]?(?:inflat\w+|expan\w+|aerat\w+|disten\w+|lucen\w+)", r"over[ -]?(?:inflat\w+|expan\w+)",
        r"(?:large|increased) lung volumes?", r"lung volumes? (?:is |are )?(?:large|increased)",
        r"flatten\w+[\w ]{0,20}?diaphragm\w*", r"diaphragm\w*[\w ]{0,12}? flatten\w+",
    ),
    "emphysema": any_of(
        r"emphysem\w+", r"\bcopd\b", r"obstructive (?:lung|pulmonary|airways?) disease", r"bullous", r"bullae?\b",
    ),
    "low_lung_volumes": any_of(
        r"(?:low|small|decreased|diminished|reduced|shallow)[\w ]{0,12}? lung (?:volumes?|lines)",
        r"lung volumes?[\w ]{0,12}? (?:low|small|decreased|diminished|reduced)",
        r"hypo[ -]?(?:inflat|expan|ventilat|aerat)\w+", r"under[ -]?inflat\w+",
        r"(?:low|poor|shallow|suboptimal) inspirat\w+", r"low volumes?", r"(?:shallow|poor) inspiratory",
    ),
    "fracture": any_of(
        r"fractur\w+", r"broken (?:rib|bone)",
    ),
    "scoliosis": any_of(
        r"\w*scolio\w+", r"(?:dextro|levo|s-shaped |spine |spinal )curv\w+",
        r"curv\w+ (?:of |within |in )?the (?:\w+ )?spine",
    ),
    "scar": any_of(
        r"scar(?:s|ring|red)?\b", r"cicatri\w+", r"fibros\w+", r"fibrotic",
    ),
    "hiatal_hernia": any_of(
        r"(?:hiatal|hiatus|paraesophageal|diaphragmatic) hernia",
    ),
}
"""Finding → pattern of a mention."""

NORMAL: dict[str, str] = {
    "cardiomegaly": any_of(
        r"(?:heart|cardiac|cardio\w*)\b[\w ,/-]{0,60}?(?:normal|unremarkable|within (?:normal )?limits|not enlarged)",
        r"normal (?:heart|cardiac|cardio\w*)",
    ),
    "opacity": any_of(
        r"(?:lungs?|lung fields?)[\w ]{0,20}? clear", r"clear[\w ,]{0,20}? lungs?", r"clear lung",
    ),
}
"""Finding → pattern of a normal statement that rules it out without naming it."""

RULED_OUT_BY_CLEAR_LUNGS = ("opacity", "consolidation")
"""Findings denied by `the lungs are clear`."""

NEGATION_BEFORE = any_of(
    r"\bno\b", r"\bnot\b", r"\bnone\b", r"\bwithout\b", r"\bfree of\b", r"\bnegative for\b", r"\bclear of\b",
    r"\babsen(?:t|ce of)\b", r"\bnor\b", r"\bneither\b", r"\bdenies\b", r"\bexclud\w+", r"\bruled? out\b",
    r"\bresolution of\b", r"\bresolved\b", r"\bnever\b", r"\brather than\b", r"\bcleared\b", r"\bdevoid of\b",
    r"\bremoved\b", r"\bfails? to (?:show|demonstrate|reveal)\b", r"\bcannot (?:see|identify)\b", r"\black of\b",
)
"""Negation of the findings that follow in its clause."""

NEGATION_AFTER = any_of(
    (r"\b(?:not|no longer) (?:\w+ ){0,2}(?:seen|identified|present|visuali\w+|visible|evident"
     r"|appreciated|demonstrated|noted|found|apparent|detected|observed|shown|enlarged|suspected|there)\b"),
    r"\b(?:is|are|was|were) (?:absent|excluded|negative|normal|unremarkable)\b",
    r"\bwithin (?:the )?normal limits?\b", r"\bwithin limits? of normal\b",
    r"\b(?:has|have)(?: \w+){0,2} (?:resolved|cleared)", r"\bunlikely\b",
    r"\bruled out\b", r"\bresolved\b", r": none\b", r"\bare none\b",
)
"""Negation of a finding that precedes it in its clause."""

NOT_NEGATION = any_of(
    (r"\bno (?:significant |interval |definite |appreciable |substantial )*(?:change|increase"
     r"|decrease|improvement|worsening)"),
    r"\bnot (?:significantly |substantially |appreciably )?changed", r"\bnot (?:be )?(?:excluded|ruled out)",
    r"\bnot only\b", r"\bcannot (?:be )?(?:excluded?|entirely excluded?|completely excluded?|rule out|ruled out)",
    r"\bwithout (?:significant |interval )*change", r"\bnot (?:entirely |completely )?(?:exclude|rule out)",
    r"difficult to (?:completely )?exclude", r"\bcan(?:no|')t be excluded",
)
"""Phrases that contain a negation word but deny no finding."""

UNCERTAIN_BEFORE = any_of(
    r"\bpossib\w+", r"\bmay\b", r"\bmight\b", r"\bcould\b", r"\bcannot\b", r"\bcan(?:'t| not)\b", r"\bquestion\w*",
    r"\bsuspect\w*", r"\bsuspicion\b", r"\bsuspicious for\b", r"\bsuggest\w*", r"\bequivocal\b",
    r"\bconcern\w*", r"\bdifferential\b",
    r"\bif\b", r"\bunclear\b", r"\bconsider\w*", r"\bperhaps\b", r"\bdoubt\w*", r"\bversus\b", r"\bvs\b",
    r"\balternatively\b", r"\bexclude\b",
)
"""Uncertainty about the findings that follow in its clause."""

UNCERTAIN_AFTER = any_of(
    (r"\b(?:is|are|was|were) (?:\w+ )?(?:possible|suspected|questionable|questioned|suggested"
     r"|considered|not excluded)\b"),
    r"\bsuggested\b", r"\b(?:cannot|can't|can not|not) (?:be )?(?:\w+ )?(?:excluded?|ruled out)",
    r"difficult to (?:\w+ )?exclude", r"\ba consideration\b", r"\b(?:possible|questionable)$",
)
"""Uncertainty about a finding that precedes it in its clause."""

CLAUSE_END = any_of(
    r"\bbut\b", r"\bhowever\b", r"\balthough\b", r"\bthough\b", r"\bexcept\b", r"\bwhich\b", r"\botherwise\b",
    r"\byet\b", r"\bapart from\b", r"\baside from\b", r"\bother than\b", r";", r"\bthere (?:is|are)\b",
    r"\bsecondary to\b", r"\bdue to\b", r"\bnow with\b", r"\bstable\b", r"\bunchanged\b",
    r"\b(?:is|are) (?:seen|noted|present|again)\b",
    r",? (?:with|and) (?=(?:a |an )?(?:mild|small|bilateral|moderate|large|new|stable|persistent|minimal))",
)
"""End of the scope of a negation or uncertainty."""

HISTORY = any_of(
    r"\bhistory of\b", r"\bindication\b", r"\bevaluat\w+ for\b", r"\bassess for\b", r"\bconcern for\b",
    r"\bto (?:exclude|identify|evaluate|assess|rule out|confirm)\b",
)
"""Words before a finding that is asked about or remembered, not seen."""

PLACE_END = any_of(
    r"\bbut\b", r"\bhowever\b", r"\balthough\b", r"\bthough\b", r"\bexcept\b", r"\botherwise\b", r";",
)
"""End of the scope of a side or zone, besides the next finding."""
SIDES: dict[str, str] = {
    "both": any_of(
        r"\bbilateral\w*", r"\bboth\b", r"\bbi-?(?:basilar|basal|apical|hilar|basis)\b",
    ),
    "left": any_of(
        r"\bleft\b(?! (?:ventric|atri))", r"\blul\b", r"\blll\b", r"\bleft-sided",
    ),
    "right": any_of(
        r"\bright\b(?! (?:ventric|atri))", r"\brul\b", r"\brml\b", r"\brll\b", r"\bright-sided",
    ),
}
"""Side → pattern of its words."""
IMPLIED_SIDES: dict[str, str] = {"left": r"\blingul\w*", "right": r"\bmiddle lobe\b"}
"""Side → parts that only this lung has, used if no side is named."""
ZONES: dict[str, str] = {
    "upper": any_of(
        r"\bupper\b", r"\bapic\w+", r"\bapex\b", r"\bapices\b", r"\bsuprahilar\b", r"\brul\b",
        r"\blul\b", r"\bbiapical\b",
    ),
    "middle": any_of(
        r"\bmid(?:dle|lung|-lung)?\b", r"\bperi-?hilar\b", r"\bhil(?:ar|um|a)\b", r"\blingul\w*",
        r"\brml\b", r"\bcentral\b",
    ),
    "lower": any_of(
        r"\blower\b", r"\bbas(?:e|es|al|ilar)\b", r"\bbi-?bas\w+", r"\bretrocardiac\b", r"\bcostophrenic\b", r"\brll\b",
        r"\blll\b",
    ),
}
"""Lung zone → pattern of its words."""
