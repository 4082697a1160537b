/** The server that this page came from: what it is asked, the key, and whom to tell of waiting. */

import { byId, note } from "./dom.js";

const ROOT = new URL("../", import.meta.url); // right below whichever path the server is mounted at

const UNREACHABLE =
  "The server cannot be reached. Perhaps it is being restarted, or the network is down.";

const PATIENCE_S = 600; // with a server that asks to come again

let key = ""; // in memory alone

/** Why something was not answered, in the server's words or in the page's. */
export class Problem extends Error {
  /** @param {string} code @param {string} detail @param {number} status 0: no answer came */
  constructor(code, detail, status = 0) {
    super(detail);
    this.code = code;
    /** Whether it may go better another time, with the same file. */
    this.passing = [0, 401, 408, 429].includes(status) || status >= 500;
  }
}

export const cancelled = () => new Problem("cancelled", "Cancelled before it was scored.");

/** What the server says of itself; asked until it answers. @type {Promise<any>|undefined} */
let asked;

/** @returns {Promise<any>} `GET /model` */
export function model() {
  asked ??= ask("model").then((response) => response.json());
  asked.catch(() => (asked = undefined));
  return asked;
}

/**
 * @param {Blob} file
 * @param {AbortSignal} [signal]
 * @param {string} [query]
 * @returns {Promise<any>} the answer of `POST /detect`
 */
export async function detect(file, signal, query = "") {
  const type = "application/octet-stream"; // the content tells
  return (await ask(`detect${query}`, { body: file, type, signal })).json();
}

/**
 * @param {Blob[]} files
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>} of `POST /detect/batch` each item as it is done, by its `index`
 */
export async function* detectMany(files, signal) {
  const form = new FormData();
  files.forEach((file, index) => form.append("files", file, String(index)));
  const accept = "application/x-ndjson";
  const { body } = await ask("detect/batch", { body: form, accept, signal });
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true, value: "" }));
    if (done) return; // or broken off: who has no answer is told so
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    yield* lines.map((line) => JSON.parse(line)).filter((item) => "index" in item);
  }
}

async function ask(path, { body, type, accept = "application/json", signal } = {}) {
  for (;;) {
    const headers = { Accept: accept };
    if (type) headers["Content-Type"] = type;
    const sent = key;
    if (sent) headers.Authorization = `Bearer ${sent}`;
    const method = body ? "POST" : "GET";
    const request = { method, body, headers, signal };
    const response = await fetch(new URL(path, ROOT), request).catch(() => {
      throw signal?.aborted ? cancelled() : new Problem("unreachable", UNREACHABLE);
    });
    if (response.ok) {
      note("");
      return response;
    }
    const problem = await problemOf(response);
    const wait = seconds(response.headers.get("Retry-After"));
    if (response.status === 401) {
      const why = sent ? "The server does not know this key." : "This server asks for an API key.";
      if (sent === key) await askForKey(new Problem("unauthorized", why, 401));
    } else if ([429, 503].includes(response.status) && wait) {
      if (wait > PATIENCE_S) {
        problem.message += " It asks to wait for more than ten minutes: try again later.";
        throw problem;
      }
      note(`${problem.message} Trying again in ${wait} s.`);
      await pause(wait, signal);
    } else throw problem;
  }
}

async function problemOf(response) {
  const said = await response.json().catch(() => ({}));
  const detail = said.detail ?? `The server, or what is before it, answered ${response.status}.`;
  return new Problem(said.code ?? `http_${response.status}`, String(detail), response.status);
}

/** @param {string|null} value of Retry-After: seconds, or a date */
function seconds(value) {
  const given = Number(value);
  const left = Number.isNaN(given) ? (Date.parse(value ?? "") - Date.now()) / 1000 : given;
  return left > 0 ? Math.ceil(left) : 0;
}

function pause(wait, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, wait * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(cancelled());
    });
  });
}

/**
 * @param {Problem} [problem] why; without one, the person has asked
 * @returns {Promise<boolean>} whether one was given; rejected with the problem where it is needed
 */
export function askForKey(problem) {
  const dialog = byId("key-dialog");
  byId("key-why").textContent = problem?.message ?? "";
  if (!dialog.open) {
    dialog.returnValue = "";
    dialog.showModal();
  }
  return new Promise((resolve, reject) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "given";
        if (given || !problem) resolve(given);
        else reject(problem);
      },
      { once: true },
    );
  });
}

byId("key-close").addEventListener("click", () => byId("key-dialog").close());
byId("key-dialog").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  byId("key").value = "";
  byId("key-dialog").close("given");
});
