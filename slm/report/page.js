document.documentElement.classList.add("scripted");
addEventListener("DOMContentLoaded", () => {
  const folds = [...document.querySelectorAll("details")];
  const setAll = (folds, open) => folds.forEach((fold) => { fold.open = open; });

  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => setTimeout(reveal));
  reveal();

  const button = document.getElementById("open-all");
  button.addEventListener("click", () => {
    const open = folds.some((fold) => !fold.open);
    setAll(folds, open);
    button.textContent = open ? "Fold all sections" : "Open all sections";
  });

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = folds.filter((fold) => !fold.open);
    setAll(closed, true);
  });
  addEventListener("afterprint", () => setAll(closed, false));

  // A wide figure fits a narrow screen; a click shows it large enough to read, and scrolls it inside its frame.
  for (const figure of document.querySelectorAll(".figure")) {
    figure.addEventListener("click", () => figure.classList.toggle("enlarged"));
  }
});
