/** Making elements. Every string becomes text, never markup. */

/**
 * @param {string} tag
 * @param {Object<string, any>} [given] properties, or attributes where there is no such property
 * @param {...(Node|string|null|undefined|false)} children those that are nothing are left out
 * @returns {any} the element
 */
export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child || child === ""));
  return node;
}

/** @param {string} id @returns {any} the element of the page */
export const byId = (id) => document.getElementById(id);

/** @param {string} text for those who hear the page */
export function say(text) {
  byId("news").textContent = text;
}

/** @param {string} text that stands on the page until another comes; empty: none */
export function note(text) {
  byId("note").hidden = !text;
  byId("note").textContent = text;
  if (text) say(text);
}

/** @param {number} value @returns {string} of a score: all as long, so that they line up */
export const fixed = (value) => value.toFixed(3);

/** @param {number} value @returns {string} three digits behind the point at most */
export const shown = (value) => String(Number(fixed(value)));
