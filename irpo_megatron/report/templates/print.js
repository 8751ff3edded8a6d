// Paper has nothing to click on: unfold what is folded there.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("#settings details")) details.open = true;
});
