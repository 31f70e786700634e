// Draws the figures of interactive.py and connects their switches. Without this script the static figures stay.
const REACH = 24; // pixels from a mark within which a pointer reads it
addEventListener("DOMContentLoaded", async () => {
  const figures = [...document.querySelectorAll("[data-figure]")];
  if (!figures.length || !("DecompressionStream" in window)) return;
  const packed = atob(document.getElementById("packed-library").textContent);
  const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);
  for (const figure of figures) {
    try {
      await draw(figure);
    } catch (error) { // the static figure comes back
      figure.closest(".interactive").classList.remove("drawn");
      console.error(error);
    }
  }

  async function draw(figure) {
    figure.closest(".interactive").classList.add("drawn"); // before drawing, so that it has a width
    const item = JSON.parse(figure.querySelector("script").textContent);
    await Bokeh.embed.embed_item(item);
    const views = Bokeh.documents.at(-1).roots()[0].children;
    const hideCard = readMarks(figure, views);
    for (const input of figure.querySelectorAll("select, input")) {
      input.addEventListener("change", () => { show(figure, views); hideCard(); });
    }
    show(figure, views);
    const repaint = () => paint(views);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    repaint();
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

  // Reads the mark that a pointer or the arrow keys point at: a ring around it, and its text in a card beside it.
  function readMarks(figure, views) {
    const [plot, card, ring] = [".plot", "output", ".ring"].map((part) => figure.querySelector(part));
    let current = null;

    function marks() {
      const view = views.find((one) => one.visible);
      const { canvas_view, frame } = Bokeh.index.roots.flatMap((root) => root.child_views ?? []).find((one) => one.model === view);
      const canvas = canvas_view.el.getBoundingClientRect(), origin = figure.getBoundingClientRect();
      const found = view.renderers.filter((series) => series.visible && series.name).flatMap((series) => {
        const [xs, ys] = ["x", "y"].map((axis) => series.data_source.get(series.glyph[axis].field));
        return [...xs].map((x, index) => ({ series, index, sx: frame.x_scale.compute(x), sy: frame.y_scale.compute(ys[index]) }));
      });
      const inside = found.filter(({ sx, sy }) => frame.bbox.contains(sx, sy)).sort((a, b) => a.sx - b.sx || a.sy - b.sy);
      return inside.map((mark) => ({ ...mark, x: mark.sx + canvas.left - origin.left, y: mark.sy + canvas.top - origin.top }));
    }

    function read(mark) {
      current = mark;
      card.hidden = ring.hidden = !mark;
      if (!mark) return;
      const value = (column) => mark.series.data_source.get(column)[mark.index];
      const known = Object.entries(JSON.parse(mark.series.name)).filter(([, column]) => value(column) !== "");
      card.textContent = known.map(([label, column]) => `${label}: ${value(column)}`).join("\n");
      const isLeft = mark.x < figure.clientWidth / 2;
      card.style.left = isLeft ? `${mark.x + 14}px` : "auto";
      card.style.right = isLeft ? "auto" : `${figure.clientWidth - mark.x + 14}px`;
      card.style.top = `${mark.y - 20}px`;
      ring.style.left = `${mark.x}px`;
      ring.style.top = `${mark.y}px`;
    }

    function point(event) {
      const origin = figure.getBoundingClientRect();
      const distance = ({ x, y }) => Math.hypot(event.clientX - origin.left - x, event.clientY - origin.top - y);
      const nearest = marks().reduce((best, mark) => (best && distance(best) <= distance(mark) ? best : mark), null);
      read(nearest && distance(nearest) < REACH ? nearest : null);
    }
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    for (const end of ["mouseleave", "blur"]) plot.addEventListener(end, () => read(null));
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const all = marks();
      if (!step || !all.length) return;
      event.preventDefault();
      const at = all.findIndex((mark) => mark.series === current?.series && mark.index === current.index);
      read(all[at < 0 ? 0 : (at + step + all.length) % all.length]);
    });
    return () => read(null);
  }
});
