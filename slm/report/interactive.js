// Draws the figures of interactive.py and connects their switches. Without this script the static figures stay.
addEventListener("DOMContentLoaded", async () => {
  const figures = [...document.querySelectorAll("[data-figure]")];
  if (!figures.length || !("DecompressionStream" in window)) return;
  const packed = atob(document.getElementById("packed-library").textContent);
  const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);
  for (const figure of figures) await draw(figure);

  async function draw(figure) {
    figure.closest(".interactive").classList.add("drawn"); // before drawing, so that it has a width
    const item = JSON.parse(figure.querySelector("script").textContent);
    await Bokeh.embed.embed_item(item);
    const views = Bokeh.documents.at(-1).roots()[0].children;
    const update = () => show(figure, views);
    for (const input of figure.querySelectorAll("select, input")) input.addEventListener("change", update);
    update();
    const repaint = () => paint(views);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    repaint();
    describe(figure, views);
  }

  // Shows each view and series whose tags are all on. A switch offers only options that those before it allow.
  function show(figure, views) {
    const on = {};
    const allows = (needs) => Object.entries(needs).every(([key, values]) => values.some((value) => on[key]?.includes(value)));
    for (const input of figure.querySelectorAll("select, input")) {
      on[input.name] ??= [];
      if (input.tagName === "INPUT") {
        if (input.checked) on[input.name].push(input.value);
        continue;
      }
      for (const option of input.options) option.hidden = option.disabled = !allows(JSON.parse(option.dataset.needs));
      const offered = [...input.options].filter((option) => !option.disabled);
      if (!offered.includes(input.selectedOptions[0])) input.value = offered[0]?.value ?? "";
      input.closest("label").hidden = offered.length < 2;
      on[input.name].push(input.value);
    }
    const isOn = (tags) => Object.entries(tags).every(([key, value]) => on[key]?.includes(value));
    for (const view of views) {
      for (const series of view.renderers) series.visible = isOn(series.tags[0]);
      view.visible = isOn(view.tags[0]);
    }
  }

  // Colours of the page, which may change between light and dark.
  function paint(views) {
    const style = getComputedStyle(document.documentElement);
    const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
    const text = { axis_label_text_color: ink, major_label_text_color: ink };
    const lines = { axis_line_color: line, major_tick_line_color: line, minor_tick_line_color: line };
    for (const view of views) {
      for (const axis of [...view.below, ...view.left]) axis.setv({ ...text, ...lines });
      for (const item of view.center) item.setv("grid_line_color" in item ? { grid_line_color: line } : { line_color: ink });
    }
  }

  // Writes the text of the selected mark below the plot. Arrow keys step through the visible marks, from left to right.
  function describe(figure, views) {
    const output = figure.querySelector("output");
    const marks = () => {
      const series = views.find((view) => view.visible).renderers.filter((one) => one.visible && one.name);
      const all = series.flatMap((one) => [...one.data_source.get(one.glyph.x.field)].map((x, index) => ({ x, one, index })));
      return all.sort((a, b) => a.x - b.x);
    };
    const isSelected = ({ one, index }) => one.data_source.selected.indices.includes(index);
    const write = () => {
      const mark = marks().find(isSelected);
      if (!mark) return;
      const texts = Object.entries(JSON.parse(mark.one.name));
      output.textContent = texts.map(([label, column]) => `${label} ${mark.one.data_source.get(column)[mark.index]}`).join(", ");
    };
    const sources = new Set(views.flatMap((view) => view.renderers).filter((one) => one.name).map((one) => one.data_source));
    for (const source of sources) source.selected.properties.indices.change.connect(write);
    figure.querySelector(".plot").addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const all = marks();
      if (!step || !all.length) return;
      event.preventDefault();
      const at = all.findIndex(isSelected);
      const next = all[at < 0 ? 0 : (at + step + all.length) % all.length];
      for (const source of sources) source.selected.indices = source === next.one.data_source ? [next.index] : [];
    });
  }
});
