/** "Why?": the heat-map over the image, its windows, and what the score stands on. */

import { el, fixed, shown } from "./dom.js";
import { Problem, detect } from "./server.js";

const signed = (value) => (value > 0 ? "+" : "") + shown(value).replace("-", "−");

const scored = ({ score, log_odds: odds }) =>
  `${score === null ? "" : `score ${fixed(score)}, `}log-odds ${signed(odds)}`;

const entropyOf = ({ entropy }) => (entropy === null ? "" : `, entropy ${shown(entropy)} nats`);

const place = ({ left, top, right, bottom }) => `${left}–${right} × ${top}–${bottom} px`;

const PIECES =
  "These are pieces judged alone. The verdict does not rest on them, and parts of real " +
  "photographs often look orange. ";

/**
 * @param {import("./results.js").Item} item
 * @returns {Promise<HTMLElement>} a group that can be focused
 */
export async function evidence(item) {
  const [result, unsure] = await Promise.all([
    detect(item.file, undefined, "?explain=true&heatmap=png"),
    perhapsTurned(item.file).catch(() => true),
  ]);
  const { evidence: found, image } = result;
  if (!found) throw new Problem("no_evidence", "This server explains nothing.");
  const { heatmap, windows, uneven } = found;
  const reading = el("p", { className: "reading" });
  const boxes = windows.length > 0 && windowBoxes(windows, image, reading);
  const missing = el("p", { hidden: !unsure }, "The image itself cannot be shown under its map.");
  const heat = heatmap && el("img", { src: png(heatmap.image), alt: "", className: "heat" });
  const stage = el(
    "div",
    { className: "stage" },
    !unsure && original(item, image, missing),
    heat,
    uneven && placed(el("div", { className: "uneven" }), uneven.box, image),
    boxes,
  );
  stage.style.aspectRatio = `${image.width} / ${image.height}`;
  stage.style.maxWidth = `calc(75vh * ${image.width / image.height})`;
  const panel = el("div", { className: "evidence", tabIndex: -1, role: "group" });
  panel.setAttribute("aria-label", `Evidence for ${item.name}`);
  const beside = el(
    "div",
    {},
    missing,
    boxes && reading,
    heat ? slider(heat) : el("p", {}, "Too small for a map: each window shows most of the image."),
    heatmap && legend(heatmap.legend),
    el("p", {}, PIECES, unevenInWords(uneven)),
    el("h5", {}, "What the score stands on"),
    el("ul", {}, ...found.views.map((view) => el("li", {}, viewInWords(view)))),
    el("p", {}, `The score ${fixed(result.score)} is made of ${combined(found)}.`),
  );
  panel.append(stage, beside);
  return panel;
}

const png = (address) => (address.startsWith("data:image/png;") ? address : "");

// EXIF's tag that turns an image, in either byte order; and what else does where there is none.
const EXIF_TURNS = /\x01\x12\0.\0{3}\x01\0{1,3}[\x02-\x08]|\x12\x01.\0\x01\0{3}[\x02-\x08]\0/;
const ELSE_TURNS = /tiff:Orientation(?:="|>)[2-8]|Raw profile type exif/;

/** Whether this browser may show it another side up than the server has seen it: all browsers turn
 * a JPEG by its EXIF, and what else a server goes by, some do not.
 */
async function perhapsTurned(file) {
  const text = new TextDecoder("latin1").decode(await file.arrayBuffer());
  return EXIF_TURNS.test(text) ? !text.startsWith("\xff\xd8") : ELSE_TURNS.test(text);
}

/** What lies under the map: the image, where this browser shows it as the server has seen it. */
function original(item, { width, height }, missing) {
  const image = el("img", { src: item.url, alt: `The image ${item.name}` });
  const plain = () => {
    image.remove();
    missing.hidden = false;
  };
  image.addEventListener("error", plain);
  image.addEventListener("load", () => {
    const turned = image.naturalWidth > image.naturalHeight !== width > height;
    if (turned && width !== height) plain();
  });
  return image;
}

function slider(heat) {
  const range = el("input", { type: "range", min: "0", max: "100", value: "60" });
  const set = () => (heat.style.opacity = String(range.valueAsNumber / 100));
  range.addEventListener("input", set);
  set();
  return el("label", { className: "slider" }, "Strength of the heat-map, % ", range);
}

function legend({ low, high, colours }) {
  const bar = el("div", { className: "bar" });
  bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  return el(
    "div",
    { className: "legend" },
    bar,
    el("span", {}, `${signed(low)} photograph`),
    el("span", {}, `AI-generated ${signed(high)}`),
    el("span", {}, "Log-odds of the windows, averaged where they overlap"),
  );
}

function placed(node, { left, top, right, bottom }, { width, height }) {
  Object.assign(node.style, {
    left: `${(100 * left) / width}%`,
    top: `${(100 * top) / height}%`,
    width: `${(100 * (right - left)) / width}%`,
    height: `${(100 * (bottom - top)) / height}%`,
  });
  return node;
}

/** A box for each window: the pointer takes the nearest one, arrow keys go from one to the next. */
function windowBoxes(windows, image, reading) {
  const texts = windows.map((view, index) => {
    const name = `Window ${index + 1} of ${windows.length}`;
    return `${name}: ${scored(view)}${entropyOf(view)}, ${place(view.box)}`;
  });
  const options = windows.map(({ box }, index) => {
    const option = el("div", { role: "option", tabIndex: -1, "aria-label": texts[index] });
    option.setAttribute("aria-selected", "false");
    return placed(option, box, image);
  });
  let current = 0;
  const choose = (index) => {
    options.forEach((option, other) => {
      option.tabIndex = other === index ? 0 : -1;
      option.setAttribute("aria-selected", String(other === index));
    });
    current = index;
    reading.textContent = texts[index];
  };
  const columns = windows.filter(({ box }) => box.top === windows[0].box.top).length; // row by row
  const keys = {
    ArrowRight: () => current + 1,
    ArrowLeft: () => current - 1,
    ArrowDown: () => current + columns,
    ArrowUp: () => current - columns,
    Home: () => 0,
    End: () => windows.length - 1,
  };
  const boxes = el("div", { className: "windows", role: "listbox" }, ...options);
  boxes.setAttribute("aria-label", "Windows of the image; arrow keys go from one to the next");
  boxes.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    options[keys[event.key]()]?.focus();
  });
  boxes.addEventListener("focusin", (event) => choose(options.indexOf(event.target)));
  const point = (event) => {
    const distances = options.map((option) => {
      const { x, y, width, height } = option.getBoundingClientRect();
      return Math.hypot(x + width / 2 - event.clientX, y + height / 2 - event.clientY);
    });
    choose(distances.indexOf(Math.min(...distances)));
  };
  boxes.addEventListener("pointermove", point);
  boxes.addEventListener("pointerdown", point);
  reading.textContent = "Point at the image, or go through it with Tab and the arrow keys.";
  options[0].tabIndex = 0;
  return boxes;
}

const combined = ({ combination }) => combination.replace(/`(\w+)`/, "calibration “$1”");

const unevenInWords = (uneven) =>
  uneven
    ? `One region is uneven (dashed): at ${place(uneven.box)}, its log-odds differ ` +
      `from the rest's by ${signed(uneven.contrast)}. ` +
      "It may have been pasted in or retouched, or be of another kind."
    : "No region stands out against the rest.";

const viewInWords = (view) =>
  `${view.entropy === null ? "The centre square" : "A close-up"} at ${place(view.box)} alone: ` +
  `${scored(view)}${entropyOf(view)}`;
