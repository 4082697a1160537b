// Ask an NS-Net server about images; node 20 or later, no packages; in a browser the same fetch.
// node javascript.mjs http://localhost:8000 photo.jpg [more ...]; a key, if any, is API_KEY.
import { readFile } from "node:fs/promises";

const [server, ...paths] = process.argv.slice(2);
const headers = { Accept: "application/x-ndjson" };
if (process.env.API_KEY) headers.Authorization = `Bearer ${process.env.API_KEY}`;

const form = new FormData();
for (const path of paths) form.append("files", new Blob([await readFile(path)]), "image");

const answer = await fetch(`${server}/detect/batch`, { method: "POST", headers, body: form });
if (!answer.ok) {
  const problem = await answer.json();
  throw new Error(`${problem.code}: ${problem.detail} (request ${problem.request_id})`);
}

// Each answer is a line of JSON, as soon as it is known; the last one sums up.
let text = "";
for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
  const lines = (text + chunk).split("\n");
  text = lines.pop();
  for (const item of lines.map(JSON.parse)) {
    if (item.status === "ok") console.log(paths[item.index], item.result.verdict, item.result.score);
    if (item.status === "error") console.log(paths[item.index], item.error.code, item.error.detail);
  }
}
