"use strict";
// Filters, sorting and charts of the page. Its tables and images need no script.
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = 8;
  const LINES = 12; // lines drawn at first; the others appear when their names are pressed
  const DASHES = [[], [7, 4], [2, 3]];
  const MARKS = ["circle", "rect", "triangle", "rectRot"];
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const format = (value) => (value === null || value === undefined ? "" : String(Number(value.toPrecision(4))));
  root.classList.add("scripted");

  // Filters

  const chosen = (name) => new Set(all(`#filters input[name="${name}"]:checked`).map((box) => box.value));
  let methods = chosen("method");
  let lengths = chosen("bits");
  let datasets = chosen("dataset");

  function filter() {
    methods = chosen("method");
    lengths = chosen("bits");
    datasets = chosen("dataset");
    for (const [name, kept] of [["method", methods], ["bits", lengths], ["dataset", datasets]]) {
      const total = all(`#filters input[name="${name}"]`).length;
      document.querySelector(`[data-count="${name}"]`).textContent = `${kept.size} of ${total}`;
    }
    const published = document.getElementById("published").checked;
    for (const element of all("main [data-method], main [data-bits]")) {
      const { method, bits } = element.dataset;
      element.hidden =
        (method !== undefined && !methods.has(method)) ||
        (bits !== undefined && !lengths.has(bits)) ||
        (element.classList.contains("published") && !published);
    }
    for (const note of all("div.published")) note.hidden = !published;
    for (const section of all("[data-dataset]")) section.hidden = !datasets.has(section.dataset.dataset);
    panels.forEach((panel) => panel.update());
    remember();
  }

  // The choices in the address, so that reloading the page or passing on the address keeps them

  const NAMES = ["method", "bits", "dataset"];

  function remember() {
    const choices = new URLSearchParams();
    for (const name of NAMES) {
      const boxes = all(`#filters input[name="${name}"]`);
      if (boxes.every((box) => box.checked)) continue;
      choices.append(name, "");
      for (const box of boxes) if (box.checked) choices.append(name, box.value);
    }
    if (!document.getElementById("published").checked) choices.append("published", "no");
    for (const [number, panel] of panels.entries()) {
      if (panel.isChosen) choices.append(`lines${number}`, [...panel.shown].sort((a, b) => a - b).join("."));
      if (panel.bits && panel.bits.value !== panel.bits.options[panel.bits.options.length - 1].value) choices.append(`curves${number}`, panel.bits.value);
    }
    const text = String(choices);
    if (text || location.hash.includes("=")) history.replaceState(null, "", `#${text}`);
  }

  function recall() {
    const choices = new URLSearchParams(location.hash.slice(1));
    for (const name of NAMES) {
      const values = new Set(choices.getAll(name));
      for (const box of all(`#filters input[name="${name}"]`)) box.checked = !values.size || values.has(box.value);
    }
    document.getElementById("published").checked = choices.get("published") !== "no";
    for (const [number, panel] of panels.entries()) {
      if (!panel.bits) continue;
      const lines = choices.get(`lines${number}`);
      if (lines !== null) panel.choose(lines.split(".").filter(Boolean).map(Number));
      const curves = choices.get(`curves${number}`);
      if ([...panel.bits.options].some((option) => option.value === curves)) panel.bits.value = curves;
    }
  }

  // Charts

  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.defaults.animation = false;
  Chart.defaults.maintainAspectRatio = false;

  const whiskers = {
    id: "whiskers",
    afterDatasetsDraw(chart) {
      const { ctx, scales } = chart;
      const { left, right, top: roof, bottom: floor } = chart.chartArea;
      ctx.save();
      ctx.beginPath();
      ctx.rect(left, roof, right - left, floor - roof);
      ctx.clip();
      chart.data.datasets.forEach((dataset, i) => {
        if (!dataset.deviations || !chart.isDatasetVisible(i)) return;
        ctx.strokeStyle = dataset.borderColor;
        ctx.lineWidth = 1.25;
        chart.getDatasetMeta(i).data.forEach((point, j) => {
          const deviation = dataset.deviations[j];
          if (!deviation) return;
          const top = scales.y.getPixelForValue(dataset.data[j].y + deviation);
          const bottom = scales.y.getPixelForValue(dataset.data[j].y - deviation);
          ctx.beginPath();
          for (const y of [top, bottom]) {
            ctx.moveTo(point.x - 4, y);
            ctx.lineTo(point.x + 4, y);
          }
          ctx.moveTo(point.x, top);
          ctx.lineTo(point.x, bottom);
          ctx.stroke();
        });
      });
      ctx.restore();
    },
  };

  const points = (xs, ys) => xs.map((x, i) => ({ x, y: ys[i] })).filter((point) => point.y !== null && point.x !== null);
  // For each chart: the titles of its axes, and the lines of a group of runs, each as [points, more settings of the line].
  const CHARTS = {
    precision: { x: "k", y: "precision", log: true, lines: (group) => [[points(...group.precision)]] },
    rank: { x: "recall", y: "precision", lines: (group) => [[points(...group.rank), { pointRadius: 0 }]] },
    radius: { x: "recall", y: "precision", lines: (group) => [[points(...group.radius), { pointRadius: 2 }]] },
    ones: { x: "bit, sorted by share of ones", y: "share of ones", lines: (group) => [[points(group.ones.map((_, i) => i + 1), group.ones), { pointRadius: 1.5 }]] },
    loss: { x: "optimizer step", y: "training loss", lines: (group) => group.loss.map(([seed, steps, values]) => [points(steps, values), { pointRadius: 0, borderWidth: 1.5, seed }]) },
    validation: { x: "optimizer step", y: "mAP", lines: (group) => group.validation.map(([seed, steps, values]) => [points(steps, values), { pointRadius: 0, borderWidth: 1.5, seed }]) },
  };

  class Panel {
    constructor(element) {
      this.element = element;
      this.content = data.sections[Number(element.dataset.section)];
      this.charts = new Map();
      this.bits = element.querySelector('[data-choose="bits"]');
      this.row = element.querySelector('[data-choose="row"]');
      this.shown = new Set(this.ranked().slice(0, LINES));
      this.isChosen = false; // whether the reader chose the lines
      this.legend = element.querySelector(".legend");
      if (!this.bits) return;
      this.bits.addEventListener("change", () => { this.update(); remember(); });
      this.drawLegend();
      for (const number of this.ranked()) this.row?.append(make("option", this.content.rows[number].label, { value: number }));
      this.row?.addEventListener("change", () => this.draw("distances"));
      for (const figure of all("figure", element)) {
        const numbers = figure.querySelector(".numbers");
        numbers.addEventListener("toggle", () => numbers.open && this.draw(figure.dataset.chart));
      }
    }

    // Draw the lines of these rows.
    choose(numbers) {
      this.shown = new Set(numbers.filter((number) => number in this.content.rows));
      this.isChosen = true;
      this.drawLegend();
    }

    // Row numbers, sorted by each row's value at its longest code length, best first.
    ranked() {
      const value = (number) => {
        const groups = this.content.groups.filter((group) => group.row === number && group.value);
        return groups.length ? groups[groups.length - 1].value[0] : -Infinity;
      };
      const best = this.content.rows.map((_, number) => value(number));
      return [...best.keys()].sort((a, b) => best[b] - best[a] || a - b);
    }

    drawLegend() {
      this.legend.replaceChildren();
      this.content.rows.forEach((row, number) => {
        const look = this.look(number);
        const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        const add = (tag, attributes) => {
          const part = document.createElementNS(svg.namespaceURI, tag);
          for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
          svg.append(part);
        };
        svg.setAttribute("aria-hidden", "true");
        add("line", { x1: 1, x2: 33, y1: 7, y2: 7, stroke: look.borderColor, "stroke-width": 2, "stroke-dasharray": look.borderDash.join(" ") });
        const marks = {
          circle: ["circle", { cx: 17, cy: 7, r: 4 }],
          rect: ["rect", { x: 13.5, y: 3.5, width: 7, height: 7 }],
          triangle: ["path", { d: "M17 2 L22 11 L12 11 Z" }],
          rectRot: ["path", { d: "M17 2 L22 7 L17 12 L12 7 Z" }],
        };
        const [tag, attributes] = marks[look.pointStyle];
        add(tag, { ...attributes, fill: look.borderColor });
        const button = make("button", undefined, { type: "button", "aria-pressed": this.shown.has(number), "data-method": row.method });
        button.append(svg, make("span", row.label));
        button.hidden = !methods.has(row.method);
        button.addEventListener("click", () => {
          this.shown[this.shown.has(number) ? "delete" : "add"](number);
          this.isChosen = true;
          button.setAttribute("aria-pressed", this.shown.has(number));
          this.update();
          remember();
        });
        this.legend.append(button);
      });
    }

    look(number) {
      const hue = colour(`s${number % COLOURS}`);
      return {
        borderColor: hue, backgroundColor: hue, borderWidth: 2, borderDash: DASHES[Math.floor(number / COLOURS) % DASHES.length],
        pointStyle: MARKS[number % MARKS.length], pointRadius: 3, pointHoverRadius: 5, tension: 0,
      };
    }

    visible() {
      return this.content.rows.map((row, number) => number).filter((number) => this.shown.has(number) && methods.has(this.content.rows[number].method));
    }

    update() {
      if (!this.bits || this.element.hidden) return;
      for (const option of this.bits.options) option.disabled = !lengths.has(option.value);
      if (this.bits.selectedOptions[0]?.disabled ?? true) {
        this.bits.value = [...this.bits.options].filter((option) => !option.disabled).at(-1)?.value ?? "";
      }
      if (this.row) {
        for (const option of this.row.options) option.disabled = !methods.has(this.content.rows[option.value].method);
        if (this.row.selectedOptions[0]?.disabled ?? true) {
          this.row.value = [...this.row.options].find((option) => !option.disabled)?.value ?? "";
        }
      }
      const total = this.content.rows.filter((row) => methods.has(row.method)).length;
      const drawn = this.visible().length;
      this.element.querySelector("[data-drawn]").textContent =
        drawn < total ? `${drawn} of ${total} lines are drawn: press a name to add or remove its line` : "Press a name to hide or show its line";
      for (const figure of all("figure", this.element)) this.draw(figure.dataset.chart); // not only those in view: a picture or a print shows all
    }

    // Return the lines and axes of a chart.
    describe(name) {
      const bits = Number(this.bits.value);
      const { rows, groups } = this.content;
      const visible = this.visible();
      if (name === "value") {
        const datasets = visible.map((number) => {
          const known = groups.filter((group) => group.row === number && group.value && lengths.has(String(group.bits)));
          return {
            ...this.look(number), label: rows[number].label,
            data: known.map((group) => ({ x: group.bits, y: group.value[0] })),
            deviations: known.map((group) => group.value[1]),
          };
        });
        return { type: "line", x: "bits", y: data.metric, ticks: this.content.lengths.filter((length) => lengths.has(String(length))), datasets };
      }
      const here = groups.filter((group) => group.bits === bits);
      if (name === "distances") {
        const group = here.find((group) => group.row === Number(this.row.value) && group.distances);
        const labels = group ? group.distances[0].map((_, distance) => distance) : [];
        const sides = [["similar pairs", "s0"], ["other pairs", "s1"]];
        const datasets = group ? sides.map(([label, hue], side) => ({
          label, data: group.distances[side], backgroundColor: colour(hue) + (side ? "66" : "bb"), borderColor: colour(hue),
          borderWidth: side ? 1.5 : 0, categoryPercentage: 1, barPercentage: 1, grouped: false,
        })) : [];
        return { type: "bar", x: "Hamming distance", y: "share of pairs", labels, datasets, legend: true };
      }
      const drawn = here.filter((group) => visible.includes(group.row) && group[name]);
      if (name === "classes") {
        const count = Math.max(0, ...drawn.map((group) => group.classes.length));
        const datasets = drawn.map((group) => ({ ...this.look(group.row), borderWidth: 0, label: rows[group.row].label, data: group.classes }));
        const labels = [...Array(count).keys()].map((number) => this.content.classes[number] ?? number);
        return { type: "bar", x: "class", y: "mAP", labels, datasets };
      }
      const { x, y, log, lines } = CHARTS[name];
      const datasets = drawn.flatMap((group) => lines(group).map(([line, more = {}]) => ({
        ...this.look(group.row), ...more, data: line,
        label: rows[group.row].label + (more.seed === undefined ? "" : `, seed ${more.seed}`),
      })));
      const ticks = log ? [1, 10, 100, 1000, 10000, 100000].filter((k) => datasets.some((set) => set.data.some((point) => point.x >= k))) : undefined;
      return { type: "line", x, y, log, ticks, datasets };
    }

    draw(name) {
      const figure = this.element.querySelector(`figure[data-chart="${name}"]`);
      const canvas = figure.querySelector("canvas");
      this.charts.get(name)?.destroy();
      const { type, x, y, log, ticks, labels, datasets, legend } = this.describe(name);
      const isEmpty = !datasets.some((dataset) => dataset.data.length);
      figure.querySelector(".empty").hidden = !isEmpty;
      canvas.hidden = isEmpty;
      const axis = (text) => ({
        title: { display: true, text, color: colour("quiet") }, ticks: { color: colour("quiet") }, grid: { color: colour("line") }, border: { color: colour("line") },
      });
      const across = axis(x);
      if (type === "line") across.type = log ? "logarithmic" : "linear";
      if (x === "recall") Object.assign(across, { min: 0, max: 1 });
      if (ticks) across.afterBuildTicks = (scale) => { scale.ticks = ticks.map((value) => ({ value })); };
      if (ticks) across.ticks.callback = (value) => String(value);
      if (ticks) across.ticks.autoSkip = false;
      if (name === "value" && ticks.length > 1) Object.assign(across, { min: ticks[0] - 2, max: ticks.at(-1) + 2 });
      const down = axis(y);
      const ends = datasets.flatMap((set) => (set.deviations ?? []).flatMap((deviation, i) => [set.data[i].y - deviation, set.data[i].y + deviation]));
      if (ends.length) Object.assign(down, { suggestedMin: Math.min(...ends), suggestedMax: Math.max(...ends) });
      if (type === "bar") Object.assign(across.grid, { display: false });
      if (x === "recall" || type === "bar") down.min = 0;
      if (name === "ones") Object.assign(down, { min: 0, max: 1 });
      const options = {
        interaction: type === "bar" ? { mode: "index", intersect: false } : { mode: "nearest", intersect: false, axis: "xy" },
        scales: { x: across, y: down },
        plugins: {
          legend: { display: Boolean(legend), labels: { color: colour("ink"), boxWidth: 14 } },
          tooltip: {
            filter: (item, index) => index < LINES,
            callbacks: {
              title: (items) => (items.length ? `${x} ${type === "bar" ? items[0].label : format(items[0].parsed.x)}` : ""),
              label: (item) => {
                const deviation = item.dataset.deviations?.[item.dataIndex];
                return ` ${item.dataset.label}: ${format(item.parsed.y)}${deviation ? ` ± ${format(deviation)}` : ""}`;
              },
            },
          },
        },
      };
      this.charts.set(name, new Chart(canvas, { type, data: { labels, datasets }, options, plugins: [whiskers] }));
      document.body.dataset.drawn = panels.reduce((sum, panel) => sum + panel.charts.size, 0) || 1;
      this.tabulate(figure, type, x, y, labels, datasets);
    }

    // Show the same numbers as a table, if the reader has opened it.
    tabulate(figure, type, x, y, labels, datasets) {
      const details = figure.querySelector(".numbers");
      details.querySelector("div")?.remove();
      if (!details.open) return;
      const table = make("table");
      table.append(make("caption", figure.querySelector("strong").textContent));
      const head = table.createTHead().insertRow();
      for (const title of ["line", x, y]) head.append(make("th", title, { scope: "col" }));
      const body = table.createTBody();
      for (const dataset of datasets) {
        dataset.data.forEach((point, i) => {
          const [left, value] = type === "bar" ? [labels[i], point] : [point.x, point.y];
          const deviation = dataset.deviations?.[i];
          const row = body.insertRow();
          row.append(make("th", dataset.label, { scope: "row" }), make("td", format(left), { class: "num" }),
            make("td", format(value) + (deviation ? ` ± ${format(deviation)}` : ""), { class: "num" }));
        });
      }
      const box = make("div", undefined, { class: "scroll", tabindex: 0 });
      box.append(table);
      details.append(box);
    }

    repaint() {
      if (!this.bits) return;
      this.drawLegend();
      this.update();
    }
  }

  const panels = [];
  for (const element of all("[data-section]")) panels.push(new Panel(element));

  // Sorting

  for (const table of all("table.runs")) {
    const body = table.tBodies[0];
    const headings = all("thead th", table);
    headings.forEach((heading, column) => {
      const button = make("button", heading.textContent, { type: "button" });
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const isNumber = heading.classList.contains("num");
        const before = heading.getAttribute("aria-sort");
        const falling = before === null ? heading.dataset.first === "descending" : before === "ascending"; // results start with the best
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const keys = new Map([...body.rows].map((row) => {
          const text = row.cells[column].textContent.trim();
          return [row, isNumber && text ? Number(text) : text];
        }));
        const compare = (a, b) => (isNumber ? a - b : a.localeCompare(b, undefined, { numeric: true }));
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [keys.get(a), keys.get(b)];
          if (x === "" || y === "") return (x === "") - (y === ""); // missing values come last
          return falling ? compare(y, x) : compare(x, y);
        });
        body.append(...rows);
      });
    });
  }

  // Light and dark

  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  function paint() {
    theme.textContent = isDark() ? "Light" : "Dark";
    panels.forEach((panel) => panel.repaint());
  }
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    paint();
  });
  system.addEventListener("change", paint);

  document.getElementById("filters").addEventListener("change", filter);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const button of all("[data-all], [data-none]")) {
    button.addEventListener("click", () => {
      const name = button.dataset.all ?? button.dataset.none;
      for (const box of all(`#filters input[name="${name}"]`)) box.checked = button.dataset.all !== undefined;
      filter();
    });
  }
  document.addEventListener("click", (event) => {
    for (const open of all(".filter[open]")) if (!open.contains(event.target)) open.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") for (const open of all(".filter[open]")) open.open = false;
  });
  if (!all("tr.published").length) document.querySelector(".switch").hidden = true;

  for (const link of all("a.ref")) {
    link.addEventListener("click", () => { document.querySelector(link.getAttribute("href")).closest("details").open = true; });
  }

  let before;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    for (const details of all("details.more, details.gallery, .note details")) details.open = true;
    paint();
  });
  addEventListener("afterprint", () => {
    if (before === undefined) delete root.dataset.theme;
    else root.dataset.theme = before;
    paint();
  });

  // A cue at tables that are wider than their frame

  const boxes = new ResizeObserver((entries) => { for (const { target } of entries) cue(target.closest(".scroll")); });
  function cue(box) {
    box.classList.toggle("cue", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  }
  for (const box of all(".scroll")) {
    boxes.observe(box);
    boxes.observe(box.firstElementChild);
    box.addEventListener("scroll", () => cue(box), { passive: true });
  }

  recall();
  filter();
  theme.textContent = isDark() ? "Light" : "Dark";
  addEventListener("hashchange", () => { // by a link within the page: the choices go back into the address
    if (location.hash.includes("=")) recall();
    filter();
  });
})();
