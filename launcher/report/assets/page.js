// Draws what needs the mouse or the keyboard: the cluster, the pipeline, the curves. Facts come from #facts (JSON).
"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hue = (i) => `var(--c${i % 8})`;
  const el = (tag, props = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), props);
    made.append(...children);
    return made;
  };

  // The cluster. A rank's coordinate follows from its number: the strides of the axes.
  const drawCluster = (tag, p) => {
    const map = document.getElementById(`cluster${tag}`);
    const axes = Object.keys(p.degrees);
    const at = (rank) => Object.fromEntries(axes.map((a) => [a, Math.floor(rank / p.strides[a]) % p.degrees[a]]));
    const cells = [];
    let axis = p.degrees.pp > 1 ? "pp" : axes.find((a) => p.degrees[a] > 1) || axes[0];
    for (let n = 0; n < p.nodes; n++) {
      const node = el("div", { className: "node" }, el("span", { textContent: p.hosts[n] || `node ${n}`, title: p.hosts[n] || "" }));
      p.domains.forEach((domain) => {
        const box = el("div", { className: "domain" });
        box.style.setProperty("--n", Math.min(8, domain.length));
        domain.forEach((gpu) => {
          const rank = n * p.per_node + p.order.indexOf(gpu);
          const cell = el("div", { className: "gpu" });
          if (rank < p.size) { cells[rank] = cell; cell.dataset.rank = rank; } else { cell.classList.add("idle"); }
          box.append(cell);
        });
        node.append(box);
      });
      map.append(node);
    }
    if (p.size > 256) map.classList.add("small");
    const out = document.getElementById(`rank${tag}`);
    if (map.scrollHeight > map.clientHeight + 2) out.textContent += ` All ${p.nodes} nodes are below: scroll inside the box.`;
    const legend = document.getElementById(`legend${tag}`);
    const paint = () => {
      cells.forEach((cell, rank) => { cell.style.background = hue(at(rank)[axis]); });
      const shown = Math.min(p.degrees[axis], 8);
      legend.replaceChildren(...Array.from({ length: shown }, (_, i) => {
        const mark = el("i");
        mark.style.background = hue(i);
        const more = i + 8 < p.degrees[axis] ? `, ${i + 8}${i + 16 < p.degrees[axis] ? ", …" : ""}` : "";
        return el("span", {}, mark, `${axis} ${i}${more}`);
      }));
    };
    let current = -1;
    const select = (rank) => {
      if (rank < 0 || rank >= p.size) return;
      if (current >= 0) map.querySelectorAll(".gpu.on,.gpu.peer").forEach((c) => c.classList.remove("on", "peer"));
      current = rank;
      const here = at(rank);
      const base = rank - here[axis] * p.strides[axis];
      for (let i = 0; i < p.degrees[axis]; i++) cells[base + i * p.strides[axis]].classList.add("peer");
      cells[rank].classList.add("on");
      const around = cells[rank].closest(".node");
      if (map.scrollHeight > map.clientHeight && document.activeElement === map) map.scrollTop += around.getBoundingClientRect().bottom > map.getBoundingClientRect().bottom
        ? around.getBoundingClientRect().bottom - map.getBoundingClientRect().bottom + 8 : Math.min(0, around.getBoundingClientRect().top - map.getBoundingClientRect().top - 8);
      const place = axes.filter((a) => p.degrees[a] > 1).map((a) => `${a} ${here[a]} of ${p.degrees[a]}`).join(", ") || "alone";
      const n = Math.floor(rank / p.per_node);
      out.textContent = `Rank ${rank}: ${p.hosts[n] || `node ${n}`}, GPU ${p.order[rank % p.per_node]}; ${place}. ` +
        `Outlined: its ${axis} group of ${p.degrees[axis]}${p.links[axis] ? `, over ${p.links[axis]}` : ""}.`;
    };
    map.addEventListener("pointerover", (e) => { if (e.target.dataset.rank) select(+e.target.dataset.rank); });
    map.addEventListener("click", (e) => { if (e.target.dataset.rank) select(+e.target.dataset.rank); });
    map.addEventListener("keydown", (e) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: p.per_node, ArrowUp: -p.per_node }[e.key];
      if (step) { e.preventDefault(); select(Math.max(0, Math.min(p.size - 1, current + step))); }
    });
    map.addEventListener("focus", () => { if (current < 0) select(0); });
    const chooser = document.getElementById(`axis${tag}`);
    chooser.append(...axes.filter((a) => p.degrees[a] > 1 || a === axis).map((a) => el("option", { value: a, textContent: a })));
    chooser.value = axis;
    chooser.addEventListener("change", () => { axis = chooser.value; paint(); select(Math.max(0, current)); });
    paint();
  };
  Object.entries(facts.placements || {}).forEach(([tag, placement]) => drawCluster(tag, placement));

  // The pipeline of one step, to scale: boxes of [rank, kind, stage, micro-batch, start, end].
  const drawPipeline = (tag, f) => {
    const pipe = document.getElementById(`pipeline${tag}`), whole = f.whole || f.end;
    const row = f.ranks > 24 ? 12 : 22, left = 70, colour = { F: "--c0", B: "--c2", W: "--c5", O: "--c7" };
    const canvas = el("canvas", { role: "img" });
    canvas.setAttribute("aria-label", pipe.dataset.label);
    const out = document.getElementById(`box${tag}`);
    let zoom = 1, on = null;
    const draw = () => {
      const width = Math.max(320, pipe.clientWidth) * zoom, height = f.ranks * row + 30, dpr = window.devicePixelRatio || 1;
      canvas.width = Math.min(width * dpr, 16000); canvas.height = height * dpr;
      canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
      const c = canvas.getContext("2d"), sx = (width - left - 12) / whole;
      c.scale(canvas.width / width, dpr);
      c.font = "13px system-ui, DejaVu Sans, sans-serif"; c.fillStyle = css("--fg");
      const every = Math.ceil(18 / row);
      for (let r = 0; r < f.ranks; r += every) c.fillText(`stage ${r}`, 0, r * row + Math.min(row, 16) - 2);
      f.boxes.forEach(([rank, kind, , mb, start, end]) => {
        const x = left + start * sx, w = (end - start) * sx;
        c.fillStyle = css(colour[kind]);
        c.fillRect(x, rank * row, Math.max(w - (w > 4 ? 1 : 0), .4), row - 2);
        if (w > 24 && row > 14 && mb >= 0) { c.fillStyle = css("--bg"); c.fillText(mb, x + 3, rank * row + 15); }
      });
      c.fillStyle = css("--dim");
      const ticks = width < 500 ? 2 : 4;
      for (let i = 0; i <= ticks; i++) { const t = whole * i / ticks, word = `${(t * f.unit_s).toPrecision(3)} s`;
        c.textAlign = i === ticks ? "right" : i ? "center" : "left"; c.fillText(word, left + t * sx, f.ranks * row + 18); }
      c.textAlign = "left";
      if (on) { c.strokeStyle = css("--fg"); c.lineWidth = 3; c.strokeRect(left + on[4] * sx, on[0] * row, Math.max(3, (on[5] - on[4]) * sx), row - 2); }
    };
    const say = (hit, rank, t) => {
      const name = { F: "forward", B: "backward", W: "weight gradients", O: "gradients and optimizer" };
      out.textContent = hit ? `Stage ${rank}: ${name[hit[1]]}${hit[3] >= 0 ? ` of micro-batch ${hit[3]}` : ""}` +
        `${hit[2] >= 0 ? `, model stage ${hit[2]}` : ""}, ${(hit[4] * f.unit_s).toPrecision(4)} to ${(hit[5] * f.unit_s).toPrecision(4)} s`
        : t >= 0 && t <= f.end ? `Stage ${rank} waits (bubble).` : "";
    };
    canvas.addEventListener("pointermove", (e) => {
      const width = canvas.clientWidth, t = (e.offsetX - left) / (width - left - 12) * whole, rank = Math.floor(e.offsetY / row);
      say(f.boxes.find((b) => b[0] === rank && b[4] <= t && t < b[5]), rank, t);
    });
    const choose = (box) => {
      on = box; draw(); say(box, box[0], box[4]);
      const sx = (canvas.clientWidth - left - 12) / whole;
      pipe.scrollLeft = Math.max(0, left + box[4] * sx - pipe.clientWidth / 2);
    };
    const boxes = Array.from({ length: f.ranks }, (_, r) => f.boxes.filter((b) => b[0] === r).sort((a, b) => a[4] - b[4]));
    pipe.addEventListener("focus", () => choose(on || boxes[0][0]));
    pipe.addEventListener("keydown", (e) => {
      const along = { ArrowRight: 1, ArrowLeft: -1 }[e.key], across = { ArrowDown: 1, ArrowUp: -1 }[e.key];
      if (!on || !(along || across)) return;
      e.preventDefault();
      const stage = boxes[Math.max(0, Math.min(f.ranks - 1, on[0] + (across || 0)))];
      if (along) choose(stage[Math.max(0, Math.min(stage.length - 1, stage.indexOf(on) + along))]);
      else choose(stage.reduce((a, b) => Math.abs(b[4] - on[4]) < Math.abs(a[4] - on[4]) ? b : a));
    });
    document.getElementById(`zoom${tag}`).addEventListener("click", () => { zoom = zoom >= 8 ? 1 : zoom * 2; draw(); });
    pipe.append(canvas);
    draw();
    window.addEventListener("resize", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  };
  Object.entries(facts.pipelines || {}).forEach(([tag, pipeline]) => drawPipeline(tag, pipeline));

  // Curves over steps.
  (facts.curves || []).forEach((curve) => {
    const place = document.getElementById(curve.id);
    const size = () => ({ width: Math.max(280, place.clientWidth), height: 240 });
    const bytes = (v) => { const i = Math.min(4, Math.floor(Math.log2(v) / 10)); return `${+(v / 2 ** (10 * i)).toPrecision(3)} ${["B", "KiB", "MiB", "GiB", "TiB"][i]}`; };
    const words = (form) => ({ values: (_, found) => found.map((v) => v == null ? "" : form(v)) });
    const short = (v) => Math.abs(v) >= 1e4 ? v.toLocaleString("en") : v && Math.abs(v) < 1e-3 ? v.toExponential().replace("+", "") : String(+v.toPrecision(4));
    const axis = () => ({ stroke: css("--fg"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") }, font: "13px system-ui, DejaVu Sans, sans-serif", size: 64 });
    let plot;
    const draw = () => {
      if (plot) plot.destroy();
      plot = new uPlot({
        ...size(), scales: { x: { time: false, ...(curve.logx ? { distr: 3, log: 2 } : {}) }, y: curve.log ? { distr: 3 } : {} }, axes: [{ ...axis(), size: 36, ...(curve.logx ? { ...words(bytes), space: 70 } : { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5] }) }, { ...axis(), ...words(short) }],
        padding: [12, 28, 0, 0], series: [{ label: curve.x, ...(curve.logx ? { value: (_, v) => v == null ? "–" : bytes(v) } : {}) }, ...curve.lines.map((line, i) => ({ label: line.name, stroke: css(`--c${(line.hue ?? i) % 8}`), width: 2, dash: line.dash ? [6, 4] : undefined,
          spanGaps: false, points: { show: curve.xs.length < 40 }, value: (_, v) => v == null ? "–" : `${+v.toPrecision(5)} ${curve.unit}` }))],
      }, [curve.xs, ...curve.lines.map((line) => line.ys)], place);
    };
    draw();
    window.addEventListener("resize", () => plot.setSize(size()));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  });

  // Time against memory of the alternatives.
  document.querySelectorAll(".dot").forEach((dot) => {
    const show = () => { document.getElementById("alternative").textContent = dot.dataset.words; };
    dot.addEventListener("pointerover", show);
    dot.addEventListener("focus", show);
  });
})();
