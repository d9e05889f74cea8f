"use strict";

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = document.getElementById("theme");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
const nameTheme = () => (theme.textContent = isDark() ? "Light colours" : "Dark colours");
theme.hidden = false;
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
dark.addEventListener("change", nameTheme);
nameTheme();

// Rows without a figure stay last in both directions.
function compare(a, b, numeric, sign) {
  if (!numeric) return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
  return sign * (Number(x) - Number(y));
}

function sort(table, heading, index) {
  const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction);
  const numeric = heading.classList.contains("number");
  const sign = direction === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => compare(a.cells[index], b.cells[index], numeric, sign));
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((heading, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(table, heading, index));
    heading.append(button);
  });
}

addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
});
