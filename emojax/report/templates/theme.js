"use strict";
const theme = document.getElementById("theme");
const darkNow = () => document.documentElement.dataset.theme === "dark" ||
  (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
const nameTheme = () => { theme.textContent = darkNow() ? "Light" : "Dark"; };
theme.addEventListener("click", () => { document.documentElement.dataset.theme = darkNow() ? "light" : "dark"; nameTheme(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
nameTheme();
