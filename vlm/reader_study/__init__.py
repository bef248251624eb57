"""Have clinicians judge drafts blinded: a study made from a run, a page to judge on, and the analysis."""
