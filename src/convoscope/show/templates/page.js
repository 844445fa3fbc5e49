(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const make = (name, parent, className) => {
    const node = document.createElement(name);
    node.className = className;
    parent.append(node);
    return node;
  };

  // light and dark
  const theme = document.querySelector(".theme");
  const remember = (value) => { try { if (value) localStorage.setItem("theme", value); return localStorage.getItem("theme"); } catch { return null; } };
  const kept = remember();
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    remember(root.dataset.theme);
  });

  // copy buttons
  if (navigator.clipboard) all(".code").forEach((box) => {
    const button = make("button", box, "copy");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(box.querySelector("code").textContent); button.textContent = "Copied"; }
      catch { button.textContent = "Select and copy by hand"; }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  });
  addEventListener("beforeprint", () => all("details").forEach((d) => { d.open = true; }));

  // from a color back to its place in the table
  const tables = JSON.parse(document.getElementById("tables").textContent);
  const places = {};
  for (const [name, colors] of Object.entries(tables)) places[name] = new Map(colors.map((color, i) => [parseInt(color.slice(1), 16), i]));

  const short = (v) => {
    if (v === 0) return "0";
    const size = Math.abs(v);
    const text = size >= 1e5 || size < 1e-4 ? v.toExponential(2) : Number(v.toPrecision(3)).toString();
    return text.replace("-", "\u2212");
  };

  // the value of a map at a place, read from its own pixels: one of 256 steps
  function reader(frame) {
    const image = frame.querySelector("img");
    const signed = frame.dataset.signed === "1";
    const limit = Number(frame.dataset.limit);
    let pixels = null;
    const load = () => {
      const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    };
    return (x, y) => {
      if (!image.complete || !image.naturalWidth) return null;
      if (!pixels) load();
      const column = Math.min(pixels.width - 1, Math.floor(x * pixels.width));
      const row = Math.min(pixels.height - 1, Math.floor(y * pixels.height));
      const i = 4 * (row * pixels.width + column);
      const [r, g, b] = pixels.data.subarray(i, i + 3);
      const place = places[signed ? "signed" : "strength"].get(65536 * r + 256 * g + b);
      if (place === undefined) return null;
      const share = signed ? (Math.max(place, 1) - 128) / 127 : place / 255;
      return { share, at: signed ? (share + 1) / 2 : share, value: share * limit, clipped: Math.abs(share) === 1 && limit > 0 };
    };
  }

  all(".picture").forEach((section) => {
    const photo = section.querySelector(".photo img");
    const maps = all(".map", section).map((article) => {
      const over = article.querySelector(".over");
      const alone = article.querySelector(".alone");
      const scale = article.querySelector(".scale");
      const layer = (image, className) => {
        const copy = make("img", over, className);
        copy.src = image.src;
        copy.alt = "";
        return copy;
      };
      const top = layer(alone.querySelector("img"), "above");
      const under = layer(photo, "under");
      over.prepend(under);
      over.querySelector(".layer").style.position = "relative";
      const needle = make("span", scale, "needle");
      needle.hidden = true;
      const readout = make("output", scale, "readout");
      readout.setAttribute("aria-live", "off");
      return { over: over.querySelector(".layer"), caption: over.parentElement.querySelector("figcaption"), top, needle, readout, read: reader(alone) };
    });
    if (!maps.length) return;

    const controls = section.querySelector(".controls");
    const slider = controls.querySelector("input");
    controls.hidden = false;
    const mix = () => {
      const at = Number(slider.value) / 50;
      const what = at < 0.1 ? "the photograph" : at > 1.9 ? "the map" : "over the photograph";
      slider.setAttribute("aria-valuetext", what);
      maps.forEach((m) => { m.over.style.opacity = Math.min(1, at); m.top.style.opacity = Math.max(0, at - 1); m.caption.textContent = what; });
    };
    slider.addEventListener("input", mix);
    mix();

    // one place, read in every map
    const frames = all("[data-frame]", section);
    const crosses = frames.map((frame) => { const c = make("span", frame, "cross"); c.hidden = true; return c; });
    let place = [0.5, 0.5];
    const show = (x, y) => {
      place = [Math.min(0.999, Math.max(0, x)), Math.min(0.999, Math.max(0, y))];
      crosses.forEach((c) => { c.hidden = false; c.style.left = `${100 * place[0]}%`; c.style.top = `${100 * place[1]}%`; });
      const said = maps.map((m) => {
        const found = m.read(...place);
        m.needle.hidden = !found;
        if (!found) return "";
        m.needle.style.left = `${100 * found.at}%`;
        m.readout.textContent = `here ${found.clipped ? (found.share > 0 ? "\u2265 " : "\u2264 ") : ""}${short(found.value)}`;
        return m.readout.textContent;
      });
      return said;
    };
    const hide = () => {
      crosses.forEach((c) => { c.hidden = true; });
      maps.forEach((m) => { m.needle.hidden = true; m.readout.textContent = ""; });
    };
    const names = all(".map h4", section).map((h) => h.textContent);
    const live = make("p", section, "sr");
    live.setAttribute("aria-live", "polite");
    frames.forEach((frame) => {
      if (!frame.classList.contains("alone")) frame.tabIndex = 0;
      frame.setAttribute("role", "group");
      frame.setAttribute("aria-label", "Picture; arrow keys move the point at which the maps are read");
      frame.addEventListener("pointermove", (event) => {
        const box = frame.getBoundingClientRect();
        show((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
      });
      frame.addEventListener("pointerleave", () => { if (document.activeElement !== frame) hide(); });
      frame.addEventListener("blur", hide);
      frame.addEventListener("keydown", (event) => {
        const step = event.shiftKey ? 0.1 : 0.02;
        const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
        if (event.key === "Escape") hide();
        if (!move) return;
        event.preventDefault();
        const said = show(place[0] + move[0], place[1] + move[1]);
        live.textContent = said.map((text, i) => `${names[i]} ${text}`).join(", ");
      });
    });
  });
})();
