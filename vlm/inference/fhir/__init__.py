"""Write a draft as an HL7 FHIR Bundle, and read vitals from Observations.

Only what R4, R4B and R5 have in common is written, so that a Bundle is valid in each of them, but the reason of a
request, which R5 renamed; R4 is what most hospitals run. Plain JSON values go in and out: no FHIR library is needed to
draft.
"""

from vlm.inference.fhir.documents import Software, to_fhir
from vlm.inference.fhir.observations import context_of, from_fhir, is_fhir
from vlm.inference.fhir.profiles import Claim

__all__ = ["Claim", "Software", "context_of", "from_fhir", "is_fhir", "to_fhir"]
