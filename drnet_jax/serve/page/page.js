// Images are sent one by one, and again when the budget changes; what the server says is shown.
"use strict";

const element = (id) => document.getElementById(id);
const [results, status, slider] = [element("results"), element("status"), element("budget")];
const cards = new Map(); // of each image its file, its place on the page and its last answer
const TOP = 3;
let model = null;
let moved = 0; // how often the budget has: answers to earlier ones are not shown

const percent = (share) => `${(100 * share).toFixed(1)} %`;

const images = (count) => `${count} image${count === 1 ? "" : "s"}`;

function multiplyAdds(count) {
  const [unit, name] = count >= 1e9 ? [1e9, "G"] : [1e6, "M"];
  return `${(count / unit).toPrecision(3)} ${name} multiply-adds`;
}

// The budget that the slider stands at, in 1e9 multiply-adds; null for none.
function budget() {
  if (!model.budgets.length) return null;
  const [least, most] = [model.budgets[0].budget, model.budgets.at(-1).budget];
  return least + (slider.value / 100) * (most - least);
}

function showBudget() {
  const asked = budget();
  if (asked === null) {
    element("expected").textContent = "This model was not validated: it has no budgets.";
    slider.disabled = true;
    return;
  }
  const base = model.multiply_adds.classifier[model.base];
  element("asked").textContent = `${multiplyAdds(1e9 * asked)}, ${percent((1e9 * asked) / base)} of ${model.base} px`;
  const known = model.budgets.findLast((each) => each.budget <= asked * 1.001) ?? model.budgets[0];
  element("expected").textContent = `In validation, ${percent(known.top1)} were right at this budget.`;
}

function row(name, share, chosen) {
  const line = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  const cell = document.createElement("td");
  const meter = document.createElement("meter");
  meter.value = share;
  meter.setAttribute("aria-label", name);
  cell.append(meter, ` ${percent(share)}`);
  line.append(head, cell);
  line.classList.toggle("chosen", chosen);
  return line;
}

function show(card, answer) {
  const find = (selector) => card.place.querySelector(selector);
  card.answer = answer;
  card.place.classList.remove("waiting");
  if (answer.error) {
    find("h2").textContent = "Not answered";
    find(".where").textContent = answer.error;
    return;
  }
  const option = answer.network === "predictor" ? "predictor" : String(answer.resolution);
  const scale = Math.min(1, answer.resolution / model.base);
  for (const shown of [find("img"), find(".seen")]) {
    shown.style.width = shown.style.height = `${100 * scale}%`;
  }
  find("h2").textContent = answer.name;
  find(".where").textContent = option === "predictor"
    ? `answered by the predictor, which saw ${answer.resolution} px`
    : `seen at ${answer.resolution} of ${model.base} px`;
  find(".top").replaceChildren(
    ...(answer.top ?? [answer]).map((each, place) => row(each.name, each.probability, place === 0)));
  find(".says").parentElement.hidden = !answer.options;
  find(".options").replaceChildren(...Object.entries(answer.options ?? {}).map(
    ([name, share]) => row(name === "predictor" ? name : `${name} px`, share, name === option)));
  const base = model.multiply_adds.classifier[model.base];
  find(".cost").textContent =
    `${multiplyAdds(answer.multiply_adds)}: ${percent(answer.multiply_adds / base)} of ${model.base} px for all`;
  showTotal();
}

function showTotal() {
  const answers = [...cards.values()].map((card) => card.answer).filter((each) => each && !each.error);
  const total = element("total");
  total.hidden = !answers.length;
  if (!answers.length) return;
  const mean = answers.reduce((sum, each) => sum + each.multiply_adds, 0) / answers.length;
  const base = model.multiply_adds.classifier[model.base];
  total.textContent = `${images(answers.length)}, ` +
    `${multiplyAdds(mean)} each: ${percent(mean / base)} of what ${model.base} px for all would take`;
}

async function ask(card) {
  const at = moved;
  card.place.classList.add("waiting");
  const asked = budget();
  const query = new URLSearchParams({ top: TOP, ...(asked === null ? {} : { budget: asked }) });
  let answer;
  try {
    const response = await fetch(`predict?${query}`, { method: "POST", body: card.file });
    answer = await response.json();
  } catch (error) {
    answer = { error: `the server does not answer (${error.message})` };
  }
  if (at === moved) show(card, answer); // else it was asked again in the meantime
}

async function askAll() {
  moved += 1;
  const waiting = [...cards.values()];
  status.textContent = waiting.length ? `Asking about ${images(waiting.length)} …` : "";
  const lanes = Array.from({ length: 4 }, async () => {
    while (waiting.length) await ask(waiting.shift());
  });
  const at = moved;
  await Promise.all(lanes);
  if (at === moved) status.textContent = cards.size ? `${images(cards.size)} answered.` : "";
}

function add(files) {
  for (const file of files) {
    const place = element("card").content.cloneNode(true).firstElementChild;
    const key = Symbol(file.name);
    const image = place.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.alt = file.name;
    image.style.width = image.style.height = "100%";
    place.querySelector("figcaption").textContent = file.name;
    place.querySelector("button").setAttribute("aria-label", `Remove ${file.name}`);
    place.querySelector("button").addEventListener("click", () => {
      URL.revokeObjectURL(image.src);
      cards.delete(key);
      place.remove();
      showTotal();
    });
    cards.set(key, { file, place, answer: null });
    results.append(place);
  }
  askAll();
}

async function begin() {
  model = await (await fetch("model")).json();
  element("model").textContent =
    `${model.classes.length} classes; ${model.options.map((name) => (name === "predictor" ? name : `${name} px`)).join(", ")}; ` +
    `${model.policy}, ${model.runtime}`;
  if (model.budgets.length && model.budget) {
    const [least, most] = [model.budgets[0].budget, model.budgets.at(-1).budget];
    slider.value = Math.round((100 * (model.budget - least)) / (most - least));
  }
  showBudget();
}

element("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
const drop = element("drop");
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  add([...event.dataTransfer.files].filter((file) => file.type.startsWith("image/")));
});
slider.addEventListener("input", showBudget);
slider.addEventListener("change", askAll);

begin().catch((error) => {
  status.textContent = `The server does not say what it is (${error.message}).`;
});
