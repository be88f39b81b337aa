// The form: tasks, methods, examples, fields; and the two requests that it stands for.

const form = {
  tasks: [],
  limit: null,
  truth: null, // the right label, while the fields hold an example
  kept: {}, // the fields as last written, for the way back from the whole prompt

  get task() { return this.tasks.find((task) => task.name === $("task").value) ?? null; },
  get whole() { return this.task === null || document.querySelector("input[name=mode]:checked").value === "whole"; },

  fill({ tasks, max_new_tokens_limit: limit }) {
    [this.tasks, this.limit] = [tasks, limit];
    const words = (task) => (task.certified ? "certified" : task.probe ? "not certified" : "no probe");
    $("task").replaceChildren(...tasks.map((task) => make("option", { value: task.name }, `${task.name} (${words(task)})`)),
      make("option", { value: "" }, "none: plain text"));
    $("budget").max = limit;
    this.pickTask();
  },

  pickTask() {
    const task = this.task;
    $("method").replaceChildren(...(task?.methods ?? ["none"]).map((name) => make("option", { value: name }, METHODS[name][0])));
    $("method").disabled = task === null;
    $("alpha").placeholder = alphaShort(task?.alpha ?? null);
    const own = task === null ? 32 : task.max_new_tokens; // null: the answer ends with its label
    $("budget").value = own === null ? "" : Math.min(own, this.limit);
    $("mode").hidden = task === null;
    const examples = task?.examples ?? [];
    $("example-row").hidden = !examples.length;
    $("example").replaceChildren(make("option", { value: "" }, "own words"), ...examples.map((example, number) => make("option", { value: number }, this.title(example))));
    if (examples.length) $("example").value = "0";
    this.pickMethod();
    this.pickExample();
  },

  title(example) {
    const values = Object.entries(example.fields).map(([name, value]) => {
      const text = Array.isArray(value) ? value.join(", ") : value;
      return text.length < 12 ? `${name} ${text}` : text.length > 56 ? `${text.slice(0, 55)}…` : text;
    });
    return `${values.join(" · ")} (${example.label})`;
  },

  pickMethod() {
    const method = $("method").value, task = this.task;
    const probe = task?.probe ? `probe ${task.probe.slice(0, 12)}, α ${task.alpha === null ? "none" : `= ${alphaShort(task.alpha)}`}` : "no probe in the store";
    $("task-words").textContent = task === null ? "Without a task nothing is read and nothing is steered."
      : `${METHODS[method][1]} The task: labels ${task.labels.join(", ")}; ${probe}.`;
    const fixed = method === "additive" || method === "contrastive";
    $("strength-label").hidden = !fixed;
    $("alpha-label").hidden = $("alpha-help").hidden = task === null || fixed || method === "logit_bias";
  },

  pickExample() {
    const example = this.task?.examples[$("example").value] ?? null;
    this.kept = example?.fields ?? {};
    this.truth = example?.label ?? null;
    this.draw(this.kept);
  },

  /** The fields to write in, or one for the whole prompt. */
  draw(values) {
    if (this.whole) {
      const text = Object.keys(values).length ? this.render(values) : "";
      $("fields").replaceChildren(make("label", {}, "Prompt", make("textarea", { name: "prompt", rows: 5, spellcheck: false, value: text })));
      return;
    }
    const small = (name) => this.task.examples.length > 0 && this.task.examples.every(({ fields }) => fields[name].length < 16 && !Array.isArray(fields[name]));
    $("fields").replaceChildren(...this.task.fields.map((name) => {
      const list = name === "choices", value = values[name] ?? "";
      const box = small(name) ? make("input", { name, className: "small", autocomplete: "off", value })
        : make("textarea", { name, rows: list ? 4 : 3, spellcheck: false, value: list ? [].concat(value).join("\n") : value });
      return make("label", {}, list ? "choices, one a line" : name, box);
    }));
  },

  render(values) {
    let letter = 64;
    const text = (value) => (Array.isArray(value) ? value.map((one) => `${String.fromCharCode(++letter)}. ${one}`).join("\n") : value);
    return this.task.template.replace(/\{\{|\}\}|\{(\w+)\}/g, (found, name) => (name ? text(values[name]) : found[0]));
  },

  values() {
    return Object.fromEntries([...$("fields").querySelectorAll("[name]")].map((box) =>
      [box.name, box.name === "choices" ? box.value.split("\n").filter((line) => line.trim()) : box.value]));
  },

  /** The body of a request. steered: by the method as chosen; else by none. Raises RangeError in words. */
  body(steered) {
    const number = (id, words, holds) => {
      const text = $(id).value.trim().replace(",", ".");
      if (text === "") return null;
      if (!holds(Number(text))) throw new RangeError(words);
      return Number(text);
    };
    const values = this.values(), task = this.task;
    const inputs = this.whole ? values.prompt : values;
    if (this.whole && !inputs) throw new RangeError("The prompt is empty. Write one, or pick an example.");
    const parameters = {
      max_new_tokens: number("budget", `Tokens at most: a whole number from 1 to ${this.limit}.`, (n) => Number.isInteger(n) && n >= 1 && n <= this.limit),
      temperature: number("temperature", "Temperature: a number from 0 to 100.", (n) => n >= 0 && n <= 100),
      seed: number("seed", "Seed: a whole number.", (n) => Number.isSafeInteger(n) && n >= 0),
    };
    const steering = { task: task?.name ?? null, method: "none" };
    if (task !== null && steered) {
      steering.method = $("method").value;
      if (!$("alpha-label").hidden) steering.alpha = number("alpha", "α: a number between 0 and 1, such as 0.05; or leave it empty.", (n) => n > 0 && n < 1);
      if (!$("strength-label").hidden) steering.strength = number("strength", "Strength: a number such as 1 or −0.5.", (n) => Math.abs(n) <= 10000);
      if (steering.method !== "logit_bias") steering.positions = $("positions").value || null;
    }
    return { inputs, parameters, steering, details: "trace" };
  },

  listen() {
    $("task").addEventListener("change", () => this.pickTask());
    $("method").addEventListener("change", () => this.pickMethod());
    $("example").addEventListener("change", () => this.pickExample());
    $("mode").addEventListener("change", () => this.draw(this.kept));
    $("fields").addEventListener("input", () => {
      this.truth = null;
      $("example").value = "";
      if (!this.whole) this.kept = this.values();
    });
  },
};
