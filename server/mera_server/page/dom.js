// Elements, numbers, and moving about with the arrow keys. Text enters the page here as text nodes, never as markup.

const $ = (id) => document.getElementById(id);

/** An element. Properties that the element has are set, others become attributes; children are elements or text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name in element && typeof value !== "object") element[name] = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Shows a problem in its place, or takes it away (words empty). */
function tell(element, words) {
  element.textContent = words;
  element.hidden = !words;
}

/** A number in [0, 1] or a shift, short: 0.37, 0.037, 0. */
function short(value) {
  if (value === 0) return "0";
  if (value < 0.001) return "under 0.001";
  return value < 0.095 ? value.toPrecision(2) : value.toFixed(2);
}

/** An α in two digits, however small it is. */
const alphaShort = (alpha) => (alpha === null ? "none" : alpha.toPrecision(2));

/** A share in percent; never 100 % or 0 % for what is not. */
function percent(share) {
  if (share > 0.995 && share < 1) return "over 99 %";
  if (share > 0 && share < 0.005) return "under 1 %";
  return `${Math.round(100 * share)} %`;
}

/** The step of a predicted error on the scale of ten. */
const errorStep = (error) => Math.min(9, Math.max(0, Math.floor(10 * error)));

/** The step of a shift: 0 unmoved, then to 0.01, 0.03, 0.1, 0.3, 1 of the activation's length, and beyond. */
const SHIFTS = [0, 0.01, 0.03, 0.1, 0.3, 1];
const shiftStep = (shift) => (shift > 0 ? SHIFTS.filter((bound) => shift > bound).length : 0);

/** A token as one reads it: spaces and line ends made visible. */
function visible(token) {
  if (token.special) return token.text || "end";
  return token.text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "…";
}

/**
 * Makes the buttons in `container` one stop of the tab key, walked through with the arrow keys. `told` gets the one that is
 * pointed at or has the focus. Buttons have data-row and data-column.
 */
function walk(container, told) {
  let current = null;
  const stop = (button) => {
    current?.setAttribute("tabindex", "-1");
    current = button;
    button.setAttribute("tabindex", "0");
  };
  const at = (event) => event.target.closest("button");
  const find = (row, column) => container.querySelector(`button[data-row="${row}"][data-column="${column}"]`);
  container.addEventListener("focusin", (event) => { if (at(event)) { stop(at(event)); told(at(event)); } });
  container.addEventListener("pointerover", (event) => { if (at(event)) told(at(event)); });
  container.addEventListener("keydown", (event) => {
    if (!at(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    const [row, column] = [Number(at(event).dataset.row), Number(at(event).dataset.column)];
    const last = Math.max(...[...container.querySelectorAll(`button[data-row="${row}"]`)].map((one) => Number(one.dataset.column)));
    const aims = {
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
      Home: [row, 0], End: [row, last],
    };
    const aim = aims[event.key] && find(...aims[event.key]);
    if (aims[event.key] && (aim || event.key.startsWith("Arrow"))) event.preventDefault();
    aim?.focus();
  });
  return (button) => { if (!current || !container.contains(current)) stop(button); else button.setAttribute("tabindex", "-1"); };
}
