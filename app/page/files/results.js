/** The table of results: a row for each image, and its details below it. */

import { byId, el, fixed, say } from "./dom.js";
import { evidence } from "./evidence.js";
import { model } from "./server.js";
import { SOURCES, VERDICTS, cutsInWords, declared, facts, reason } from "./words.js";
import { sourceInWords, warned } from "./words.js";

/**
 * @typedef {object} Item one image that was chosen
 * @property {File} file
 * @property {string} name shown and exported, never sent
 * @property {string} url of the file, in this browser
 * @property {any} [result] of the server
 * @property {any} [problem] why there is none
 * @property {HTMLElement} row
 * @property {HTMLElement} below the row of its details
 */

/** @param {File} file @returns {Item} with its rows in the table */
export function add(file) {
  const url = URL.createObjectURL(file);
  const item = { file, name: file.name, url, row: el("tr"), below: el("tr", { hidden: true }) };
  item.below.id = `item-${byId("rows").children.length}`;
  byId("rows").append(item.row, item.below);
  wait(item);
  return item;
}

/** @param {Item} item without an answer yet */
export function wait(item) {
  fill(item, el("td", { colSpan: 2, className: "quiet" }, "Waiting …"));
}

/** @param {Item} item with its result or problem @param {() => void} again tries once more */
export function show(item, again) {
  const { result, problem } = item;
  if (!result) {
    const retry = el("button", { type: "button", onclick: again }, "Try again");
    const text = el("td", { colSpan: 2 }, el("strong", {}, "Not scored. "), problem.message, " ");
    fill(item, text);
    if (problem.passing) text.append(retry);
    return;
  }
  const toggle = el(
    "button",
    { type: "button", "aria-expanded": "false", "aria-controls": item.below.id },
    "Details",
    el("span", { className: "unseen" }, ` of ${item.name}`),
  );
  toggle.addEventListener("click", () => open(item, item.below.hidden));
  const outcome = el("div", { className: "outcome" }, verdictOf(result));
  outcome.append(el("span", {}, fixed(result.score)), scale(result));
  const says = result.provenance?.declares;
  if (["ai_generated", "ai_edited"].includes(says))
    outcome.append(el("span", { className: "quiet" }, `The file says ${declared(says)}.`));
  if (result.provenance?.c2pa.status === "invalid")
    outcome.append(el("span", { className: "quiet" }, "Its credentials do not hold."));
  if (result.warnings.includes("low_quality"))
    outcome.append(el("span", { className: "quiet" }, "Too little is left to judge by."));
  fill(item, el("td", {}, outcome), el("td", {}, toggle));
}

/** @param {Item} item @param {boolean} wanted */
export function open(item, wanted) {
  if (wanted && !item.below.firstChild)
    item.below.append(el("td", { colSpan: 3 }, details(item)));
  item.below.hidden = !wanted;
  item.row.querySelector("[aria-expanded]")?.setAttribute("aria-expanded", String(wanted));
}

/** @param {Item[]} items @returns {string} how many of what */
export function counted(items) {
  const scored = items.filter((item) => item.result);
  const counts = Object.entries(VERDICTS).map(([verdict, { name }]) => [
    name,
    scored.filter((item) => item.result.verdict === verdict).length,
  ]);
  counts.push(["Not scored", items.filter((item) => item.problem).length]);
  return counts.filter(([, count]) => count).map((pair) => `${pair.join(": ")}.`).join(" ");
}

function fill(item, ...cells) {
  const thumb = el("img", { src: item.url, alt: "", loading: "lazy", decoding: "async" });
  thumb.addEventListener("error", () => thumb.remove()); // a format that this browser does not show
  const file = el("div", { className: "file" }, thumb, el("span", {}, item.name));
  item.row.replaceChildren(el("th", { scope: "row" }, file), ...cells);
}

function verdictOf({ verdict }) {
  const { mark, name } = VERDICTS[verdict] ?? { mark: "", name: verdict };
  return el(
    "span",
    { className: `verdict ${verdict}` },
    el("span", { "aria-hidden": "true" }, mark),
    ` ${name}`,
  );
}

/** The score between the cuts; what it shows is said in words beside it. */
function scale({ score, thresholds }) {
  const { real_below: low, ai_above: high } = thresholds;
  const zones = [["real", low], ["uncertain", high - low], ["ai_generated", 1 - high]].map(
    ([name, share]) => {
      const zone = el("span", { className: name });
      zone.style.flexGrow = String(share);
      return zone;
    },
  );
  const needle = el("span", { className: "needle" });
  needle.style.left = `${100 * score}%`;
  const label = `Score ${fixed(score)} of 0 to 1: ${cutsInWords(thresholds)}.`;
  return el("span", { className: "scale", role: "img", "aria-label": label }, ...zones, needle);
}

const list = (lines) => el("ul", {}, ...lines.map((line) => el("li", {}, line)));

function details(item) {
  const { result } = item;
  const picture = el("img", { src: item.url, alt: `The image ${item.name}`, className: "picture" });
  picture.addEventListener("error", () => picture.remove());
  const warnings = warned(result.warnings);
  const why = el("button", { type: "button", className: "main" }, "Why?");
  const answer = el("p");
  const place = el("div");
  const title = el("h4", {}, "Why this score");
  const explained = el("div", { hidden: true }, title, answer, why, place);
  model().then(({ limits }) => (explained.hidden = limits.explained === null));
  const tell = (text) => say((answer.textContent = text));
  why.addEventListener("click", async () => {
    why.disabled = true;
    tell("The server looks again, piece by piece. This takes some seconds …");
    try {
      place.replaceChildren(await evidence(item));
      answer.remove();
      why.remove();
      place.firstChild.focus();
    } catch (problem) {
      tell(problem.message);
      why.disabled = false;
    }
  });
  return el(
    "article",
    { "aria-label": item.name },
    el(
      "div",
      { className: "columns" },
      picture,
      el(
        "div",
        {},
        el("h3", {}, verdictOf(result)),
        el("p", {}, reason(result)),
        el("p", {}, `Score ${fixed(result.score)}: ${cutsInWords(result.thresholds)}.`),
        scale(result),
        el("h4", {}, "What this does not mean"),
        list(VERDICTS[result.verdict]?.not ?? []),
        warnings.length > 0 && el("h4", {}, "About this file"),
        warnings.length > 0 && list(warnings),
      ),
    ),
    ...provenance(result.provenance),
    explained,
    el("p", { className: "quiet" }, ...imageFacts(result)),
  );
}

function imageFacts({ image, model }) {
  const sum = (digest) => el("code", {}, digest);
  return [
    `${image.format}, ${image.width} × ${image.height} pixels, SHA-256 `, sum(image.sha256),
    `. Scored by ${model.name} ${model.version}, SHA-256 `, sum(model.sha256), ".",
  ];
}

function provenance(found) {
  const title = el("h4", {}, "What the file says of itself");
  if (!found) return [title, el("p", {}, "This server does not read it.")];
  const sources = Object.entries(SOURCES).filter(([source]) => found[source]);
  const there = sources.filter(([source]) => found[source].status !== "absent");
  const absent = sources.filter(([source]) => found[source].status === "absent");
  return [
    title,
    el("p", {}, `It says ${declared(found.declares)}. `, CAVEAT),
    el(
      "dl",
      {},
      ...there.flatMap(([source, name]) => [
        el("dt", {}, name),
        el("dd", {}, sourceInWords(found[source]), el("br"), facts(found[source])),
      ]),
    ),
    absent.length > 0 &&
      el("p", { className: "quiet" }, `Not there: ${absent.map(([, name]) => name).join(", ")}.`),
  ];
}

const CAVEAT =
  "The score does not depend on it. Anybody can write or remove such words, a trusted signature " +
  "apart: that a file declares nothing is no evidence of a photograph.";
