// The page over /api/, which examples/serve.py describes.

const byId = (id) => document.getElementById(id);

const state = { first: null, second: null, context: null, seed: 0, strengths: {} };
let model;  // What the server says of it.

// --- The server ---

async function post(path, body) {
  const label = model.classes.length ? { label: Number(byId("label").value) } : {};
  const context = model.contexts.length ? { context: state.context } : {};
  return send(path, { ...body, ...label, ...context });
}

async function send(path, body) {
  const headers = { "Content-Type": "application/json" };
  return answer(() => fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

async function answer(request) {
  const response = await request().catch(() => { throw new Error("The server does not answer."); });
  const content = await response.json().catch(() => ({ error: `The server answers with status ${response.status}.` }));
  if (!response.ok) throw new Error(content.error);
  return content;
}

// Runs an action and says what went wrong with it.
async function tell(action) {
  say("");
  try {
    await action();
  } catch (error) {
    say(error.message);
  }
}

function say(message) {
  byId("error").textContent = message;
}

// Of calls that come faster than they are answered, all but the newest are left out: a slider in motion calls often.
function newest(action) {
  let isRunning = false;
  let isOutdated = false;
  return async () => {
    isOutdated = true;
    if (isRunning) return;
    isRunning = true;
    while (isOutdated) {
      isOutdated = false;
      await tell(action);
    }
    isRunning = false;
  };
}

// --- What is shown ---

const showOriginal = newest(async () => {
  if (state.first) showScored("original", await post("api/image", { image: state.first }));
});

const showEdited = newest(async () => {
  if (state.first) showScored("edited", await post("api/edit", { image: state.first, strengths: state.strengths }));
});

const showSteps = newest(async () => {
  if (!state.first || !state.second) return;
  const { images } = await post("api/interpolate", { first: state.first, second: state.second });
  images.forEach((image, i) => { byId("steps").children[i].firstChild.src = image; });
});

const showSamples = newest(async () => {
  const temperature = byId("temperature").valueAsNumber;
  const { images } = await post("api/sample", { temperature, seed: state.seed });
  images.forEach((image, i) => { byId("samples").children[i].querySelector("img").src = image; });
});

function showScored(id, { image, bits_per_dim: bits }) {
  byId(id).src = image;
  byId(`${id}-bits`).textContent = bits === null ? "bits per dim are not finite" : `${bits.toFixed(2)} bits per dim`;
}

function showAll() {
  showOriginal();
  showEdited();
  showSteps();
  showSamples();
}

function pick(which, image) {
  state[which] = image;
  if (which === "context") {
    showAll();
    return;
  }
  if (which === "first") {
    showOriginal();
    showEdited();
  }
  showSteps();
}

// --- Controls ---

function element(name, properties, ...children) {
  const result = Object.assign(document.createElement(name), properties);
  result.append(...children);
  return result;
}

// Adds an image to those that can be picked as `which`: the first one, the second one, or the context.
function offer(which, image, alt, isPicked) {
  const radio = element("input", { type: "radio", name: which, checked: isPicked });
  radio.addEventListener("change", () => pick(which, image));
  byId(which).querySelector(".tiles").append(
    element("label", { className: "tile" }, radio, element("img", { src: image, alt })));
  if (isPicked) pick(which, image);
  return radio;
}

function makePicker(which, images, picked) {
  const accept = "image/jpeg,image/png,image/webp,image/gif,image/bmp";
  const file = element("input", { type: "file", id: `${which}-file`, accept });
  file.addEventListener("change", () => tell(() => upload(which, file)));
  byId(which).append(
    element("div", { className: "tiles" }),
    element("div", { className: "row" }, element("label", { htmlFor: file.id, textContent: "Or open a file" }), file));
  images.forEach((image, i) => offer(which, image, `Image ${i + 1}`, i === picked));
}

async function upload(which, input) {
  const [file] = input.files;
  input.value = "";  // The same file may be chosen again.
  if (!file) return;
  if (file.size > model.max_file_bytes) {
    throw new Error(`The file must have at most ${model.max_file_bytes / 2 ** 20} MB.`);
  }
  const content = { image: await toDataUrl(file) };
  const { image } = await (which === "context" ? send("api/context", content) : post("api/image", content));
  offer(which, image, file.name, true).scrollIntoView({ block: "nearest" });
}

function toDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The browser cannot read the file."));
    reader.readAsDataURL(file);
  });
}

function makeSlider(name, index) {
  const [min, max] = model.strengths;
  const range = element("input", { type: "range", id: `direction-${index}`, min, max, step: 0.1, value: 0 });
  const value = element("span", { ariaHidden: "true" });
  range.addEventListener("input", () => {
    state.strengths[name] = range.valueAsNumber;
    value.textContent = range.valueAsNumber.toFixed(1);
    showEdited();
  });
  value.textContent = "0.0";
  byId("sliders").append(element(
    "div", { className: "slider" }, element("label", { htmlFor: range.id, textContent: name }), range, value));
}

function resetSliders() {
  for (const range of byId("sliders").querySelectorAll("input")) {
    range.value = 0;
    range.dispatchEvent(new Event("input"));
  }
}

function makeImages(list, count, makeItem) {
  for (let i = 1; i <= count; i++) byId(list).append(element("li", {}, makeItem(i)));
}

function makeSample(number) {
  const image = element("img", { alt: `Sample ${number}` });
  const button = element("button", { type: "button" }, image);
  button.addEventListener("click", () => offer("first", image.src, `Sample ${number}`, true).focus());
  return button;
}

function makeTemperature() {
  const range = byId("temperature");
  const show = () => {
    byId("temperature-value").textContent = range.valueAsNumber.toFixed(2);
    showSamples();
  };
  [range.min, range.max] = model.temperatures;
  range.value = 0.7;
  range.addEventListener("input", show);
  show();
}

byId("close").addEventListener("click", () => say(""));

await tell(async () => {
  model = await answer(() => fetch("api/model"));
  const [height, width, channels] = model.image_shape;
  byId("summary").textContent = `A model of ${channels === 1 ? "grey" : "colour"} images, ${width} × ${height} pixels`;
  document.documentElement.style.setProperty("--aspect-ratio", `${width} / ${height}`);
  model.classes.forEach((name, i) => byId("label").append(new Option(name, i)));
  byId("class").hidden = !model.classes.length;
  byId("label").addEventListener("change", showAll);
  model.directions.forEach(makeSlider);
  byId("reset").hidden = !model.directions.length;
  byId("reset").addEventListener("click", resetSliders);
  makeImages("steps", model.num_steps, (i) => element("img", { alt: `Image ${i} of ${model.num_steps} on the way` }));
  makeImages("samples", model.num_samples, makeSample);
  byId("draw").addEventListener("click", () => {
    state.seed++;
    showSamples();
  });
  byId("context").hidden = !model.contexts.length;
  [state.context] = model.contexts;
  makePicker("first", model.images, 0);
  makePicker("second", model.images, 1);
  makeTemperature();
  if (model.contexts.length) makePicker("context", model.contexts, 0);
});
