"use strict";
const theme = document.getElementById("theme");
const darkNow = () => document.documentElement.dataset.theme === "dark" ||
  (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
const nameTheme = () => { theme.textContent = darkNow() ? "Light" : "Dark"; };
theme.addEventListener("click", () => { document.documentElement.dataset.theme = darkNow() ? "light" : "dark"; nameTheme(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
nameTheme();

// What is wider than the screen says that it scrolls.
for (const box of document.querySelectorAll(".scroll")) {
  const hint = Object.assign(document.createElement("p"), { className: "hint", textContent: "Scroll sideways for all of it →", hidden: true });
  box.after(hint);
  new ResizeObserver(() => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("wide", wide);
    hint.hidden = !wide;
  }).observe(box);
}
