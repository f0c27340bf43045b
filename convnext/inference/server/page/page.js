// The page of `convnext serve`. Names of classes and of files are only ever set as text, never read as markup.

import { setUpCamera } from "./camera.js";
import { Failure, ask, send } from "./requests.js";

const SMALL = 128; // pixels; those of a smaller image are shown sharp
const BACKENDS = { eager: "PyTorch", onnxruntime: "ONNX Runtime", openvino: "OpenVINO" };
const METHODS = { "grad-cam": "Grad-CAM", occlusion: "Occlusion", "integrated-gradients": "Integrated gradients" };

const byId = (id) => document.getElementById(id);
const copyOf = (id) => byId(id).content.firstElementChild.cloneNode(true);
const counted = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

function percent(probability) {
  if (probability < 0.001) return "< 0.1 %";
  if (probability > 0.999 && probability < 1) return "> 99.9 %";
  return `${(100 * probability).toFixed(1)} %`;
}

function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
}

function notify(words) {
  byId("notice").textContent = words;
  byId("notice").hidden = !words;
}

// The model

let asked = null;

/** What `GET /model` says: asked for once, and again after it failed. */
function aboutModel() {
  asked ??= ask("model", (response) => response.json()).then(showModel, (failure) => {
    asked = null;
    byId("facts").textContent = failure.message;
    byId("reconnect").hidden = false;
    throw failure;
  });
  return asked;
}

function showModel(about) {
  document.title = `${about.name} · ConvNeXt`;
  byId("model").textContent = about.name;
  byId("facts").textContent = [
    counted(about.classes.length, "class", "classes"),
    `${about.image_size} px`,
    ...(about.channels === 1 ? ["grey"] : []),
    BACKENDS[about.backend] ?? about.backend,
    about.precision,
  ].join(" · ");
  byId("reconnect").hidden = true;
  return about;
}

// Images

const cards = new Set();
let finished = []; // cards since nothing was under way
let created = 0;

/** An image that somebody chose: its preview, what the model says of it, and where the model looked. */
class Card {
  constructor(file) {
    this.file = file;
    this.group = `card-${++created}`; // of its radio buttons
    this.gone = new AbortController();
    this.looking = new AbortController();
    this.preview = URL.createObjectURL(file);
    this.heats = new Map(); // object URLs, by query
    this.root = copyOf("card");
    this.setUp();
  }

  get(className) {
    return this.root.querySelector(`.${className}`);
  }

  setUp() {
    const image = this.get("image");
    image.addEventListener("load", () => {
      this.root.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < SMALL);
    });
    image.addEventListener("error", () => {
      image.hidden = true;
      this.get("blank").hidden = false;
    });
    image.alt = this.file.name;
    image.src = this.preview;
    this.get("name").textContent = this.file.name;
    this.get("name").title = this.file.name;
    this.get("remove").setAttribute("aria-label", `Remove ${this.file.name}`);
    this.get("remove").addEventListener("click", () => this.remove());
    this.get("retry").addEventListener("click", () => {
      this.get("remove").focus(); // the button goes away
      this.predict();
    });
    this.get("look").addEventListener("click", () => (this.isOpen ? this.close() : this.look()));
    this.get("choices").addEventListener("change", () => this.look());
    this.get("classes").addEventListener("change", () => this.look());
  }

  get state() {
    return this.root.dataset.state;
  }

  get isOpen() {
    return this.root.classList.contains("open");
  }

  /** Show what there is: "waiting", a "failure" or an "answer". */
  show(state, words = "") {
    this.root.dataset.state = state;
    for (const name of ["waiting", "failure", "answer"]) this.get(name).hidden = name !== state;
    if (state !== "answer") this.get(state).querySelector("p").textContent = words;
    countCards();
  }

  async predict() {
    const { signal } = this.gone;
    const onStart = () => this.show("waiting", "The model looks at it …");
    const onBusy = () => this.show("waiting", "The server is busy. Trying again …");
    this.show("waiting", "Waiting …");
    try {
      const about = await aboutModel();
      if (this.file.size > about.limits.bytes) {
        const [size, most] = [this.file.size, about.limits.bytes].map(megabytes);
        throw new Failure(`The file has ${size}; the server takes at most ${most}.`, true);
      }
      const read = (response) => response.json();
      const { results } = await send("predict?top_k=5", read, "images", this.file, { signal, onStart, onBusy });
      this.showAnswer(results[0].predictions, about);
    } catch (failure) {
      if (signal.aborted) return;
      this.get("retry").hidden = failure.lasting;
      this.show("failure", failure.message);
    }
    announce(this);
  }

  showAnswer(predictions, { explanations, stages }) {
    this.best = predictions[0];
    this.get("answer").querySelector("legend").textContent = `Most probable classes of ${this.file.name}`;
    this.get("classes").replaceChildren(...predictions.map((prediction, rank) => rowOf(prediction, rank, this.group)));
    fillSelect(this.get("method"), explanations.map((method) => [METHODS[method] ?? method, method]));
    fillSelect(this.get("stage"), Array.from({ length: stages }, (_, index) => [stageName(index, stages), -1 - index]));
    this.get("explanation").hidden = !explanations.length;
    this.root.querySelector("fieldset").disabled = !explanations.length; // its classes are the heat map's choices
    this.show("answer");
  }

  /** Show the heat map of the class, the method and the stage that are chosen. */
  async look() {
    const name = this.root.querySelector("input:checked").value;
    const method = this.get("method").value;
    const query = new URLSearchParams({ class: name, method });
    if (method === "grad-cam") query.set("stage", this.get("stage").value || -1);
    this.looking.abort();
    this.looking = new AbortController();
    const { signal } = this.looking;
    this.open(method);
    this.caption = `Asking where the model looked for ${name} …`;
    try {
      this.get("heat").src = await this.heat(`explain?${query}`, signal);
      this.get("heat").alt = `Heat map: where the model looked for ${name}`;
      this.get("heat").hidden = false;
      this.caption = `Warm: what speaks for ${name}. Pale: what the model did not see.`;
    } catch (failure) {
      if (signal.aborted) return;
      this.get("heat").hidden = true;
      this.caption = failure.message;
    }
    this.root.classList.remove("looking");
  }

  async heat(query, signal) {
    if (!this.heats.has(query)) {
      const read = (response) => response.blob();
      const blob = await send(query, read, "image", this.file, { signal, urgent: true });
      this.heats.set(query, URL.createObjectURL(blob));
    }
    return this.heats.get(query);
  }

  set caption(words) {
    this.get("caption").textContent = words;
  }

  open(method) {
    this.root.classList.add("open", "looking");
    this.get("look").textContent = "Show the image alone";
    this.get("details").hidden = false;
    this.get("method").parentElement.hidden = this.get("method").length < 2;
    this.get("stage").parentElement.hidden = this.get("stage").length < 2 || method !== "grad-cam";
  }

  close() {
    this.looking.abort();
    this.root.classList.remove("open", "looking");
    this.get("look").textContent = "Where did the model look?";
    this.get("details").hidden = true;
    this.get("heat").hidden = true;
  }

  remove() {
    const neighbour = this.root.nextElementSibling ?? this.root.previousElementSibling;
    (neighbour?.querySelector(".remove") ?? byId("choose")).focus();
    this.discard();
  }

  discard() {
    cards.delete(this);
    this.root.remove();
    this.gone.abort();
    this.looking.abort();
    for (const url of [this.preview, ...this.heats.values()]) URL.revokeObjectURL(url);
    countCards();
  }
}

function rowOf(prediction, rank, group) {
  const row = copyOf("row");
  const input = row.querySelector("input");
  input.name = group;
  input.value = prediction.class;
  input.checked = rank === 0;
  row.querySelector(".class-name").textContent = prediction.class;
  row.querySelector(".percent").textContent = percent(prediction.probability);
  row.querySelector(".bar span").style.width = `${100 * prediction.probability}%`;
  return row;
}

function fillSelect(select, choices) {
  select.replaceChildren(...choices.map(([text, value]) => new Option(text, value)));
}

function stageName(index, stages) {
  const names = { 0: "last, coarse", [stages - 1]: "first, fine" };
  return names[index] ?? `${stages - index} of ${stages}`;
}

function add(files) {
  notify("");
  const added = files.map((file) => new Card(file));
  byId("cards").prepend(...added.map((card) => card.root));
  for (const card of added) cards.add(card);
  for (const card of added) card.predict();
}

function countCards() {
  const states = [...cards].map((card) => card.state);
  const coming = states.filter((state) => state === "waiting").length;
  const failed = states.filter((state) => state === "failure").length;
  byId("toolbar").hidden = !cards.size;
  byId("count").textContent = [
    counted(cards.size, "image", "images"),
    ...(coming ? [`${coming} to come`] : []),
    ...(failed ? [`${failed} without an answer`] : []),
  ].join(" · ");
}

/** For those who listen: of one image what it shows; of several, that all are done. */
function announce(card) {
  finished.push(card);
  if ([...cards].some((other) => other.state === "waiting")) return;
  const failed = finished.filter((other) => other.state === "failure").length;
  let words = `${finished.length} images done, ${failed} of them without an answer.`;
  if (finished.length === 1) {
    const answer = failed ? card.get("reason").textContent : `${card.best.class}, ${percent(card.best.probability)}`;
    words = `${card.file.name}: ${answer}`;
  }
  byId("news").textContent = words;
  finished = [];
}

// What people do

byId("reconnect").addEventListener("click", () => aboutModel().catch(() => {})); // the header shows the failure
byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = ""; // so that the same file may be chosen again
});
byId("clear").addEventListener("click", () => {
  for (const card of [...cards]) card.discard();
  byId("choose").focus();
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add([...event.clipboardData.files]);
  else notify("There is no image to paste: copy an image or its file first.");
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files.length) add([...event.dataTransfer.files]);
  else notify("That is no image file: save the image first, then drop its file.");
});
setUpCamera(add, notify);
if (/Mac|iPhone|iPad/.test(navigator.platform)) byId("paste-keys").textContent = "⌘V";
aboutModel().catch(() => {}); // the header shows the failure
