// Copies a draft, brings it into view on a phone, marks one as stale when an input is edited after it, and tells
// screen readers what a group of choices is of.
document.addEventListener("click", async (event) => {
  if (event.target.closest("#vlm-draft")) {
    const results = document.querySelector("#vlm-results");
    delete results.dataset.edited;
    if (innerWidth < 700) results.scrollIntoView({ behavior: "smooth" });  // in one column they stand far below
  }
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.querySelector(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {  // no clipboard without TLS or permission: select the text, and the old command takes it
    getSelection().selectAllChildren(source);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});
document.addEventListener("input", (event) => {
  if (event.target.closest("#vlm-inputs")) document.querySelector("#vlm-results").dataset.edited = "";
});
function labelChoices() {
  document.querySelectorAll("#vlm-inputs fieldset").forEach((group) => {
    group.setAttribute("aria-label", group.querySelector("[data-testid=block-info]").textContent.trim());
  });
}
