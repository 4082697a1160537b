/** Results as files. */

import { el } from "./dom.js";

/** @param {any} item @returns {Object<string, any>} what is told of one image; null: not known */
const row = ({ name, result, problem }) => ({
  filename: name,
  sha256: result?.image.sha256 ?? null,
  verdict: result?.verdict ?? null,
  score: result?.score ?? null,
  real_below: result?.thresholds.real_below ?? null,
  ai_above: result?.thresholds.ai_above ?? null,
  warnings: result?.warnings ?? [],
  declares: result?.provenance?.declares ?? null,
  model_sha256: result?.model.sha256 ?? null,
  error: problem?.code ?? null,
});

/** A spreadsheet would run a cell that begins so as a formula; some pass over spaces and width. */
const FORMULA = /^\s*[=+\-@＝＋－＠]|^[\t\r\n]/;

/** @param {any} value @returns {string} a cell, RFC 4180 */
function cell(value) {
  const text = [value ?? ""].flat().join(" ");
  return `"${(FORMULA.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
}

/** @param {any[]} items scored, or not */
export function saveCsv(items) {
  const rows = items.map(row);
  const lines = [Object.keys(rows[0]), ...rows.map((one) => Object.values(one))];
  const text = lines.map((line) => `${line.map(cell).join(",")}\r\n`).join("");
  save(`\ufeff${text}`, "text/csv", "csv"); // by the mark, spreadsheets know UTF-8
}

/** @param {any[]} items scored, or not */
export function saveJson(items) {
  save(`${JSON.stringify(items.map(row), null, 2)}\n`, "application/json", "json");
}

function save(text, type, ending) {
  const href = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href, download: `nsnet-results.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000); // the download has begun by then
}
