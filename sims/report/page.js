"use strict";
// Draws the charts of a report from the JSON that the page carries. Nothing is loaded; names from outside reach Plotly escaped, because it
// reads a little HTML in texts.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  // Okabe and Ito's colours, told apart by colour-blind people; on a dark ground the dark ones are lightened.
  const POLICIES = {
    light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#5f6b76"],
    dark: ["#4aa8e0", "#ff8a3d", "#2ec79b", "#e39cc3", "#f2b632", "#9ad4f5", "#b494d6", "#a3b0bc"],
  };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  // Waiting is grey, making ready warm, moving bytes green and light blue, the work itself blue.
  const TERMS = {
    light: { queue: "#9aa7b4", fetch: "#b3460e", stage: "#e07b39", init: "#f0b35e", compile: "#cc79a7", adapt: "#8e5ea2", input: "#7fd1b9", execution: "#0072b2", output: "#009e73" },
    dark: { queue: "#6d7a88", fetch: "#d9622b", stage: "#f08a4b", init: "#f7c576", compile: "#e39cc3", adapt: "#b494d6", input: "#a6e3d0", execution: "#4aa8e0", output: "#2ec79b" },
  };
  const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, most = 28) => escaped(text.length > most ? text.slice(0, most - 1) + "…" : text);
  const theme = () => root.dataset.theme;
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const policy = (index) => POLICIES[theme()][index % 8];
  const duration = (s) => (s < 1 ? `${Math.round(s * 1000)} ms` : s < 60 ? `${s.toPrecision(3)} s` : s < 3600 ? `${(s / 60).toPrecision(3)} min` : `${(s / 3600).toPrecision(3)} h`);
  const percent = (share) => (share === null ? "–" : `${(share * 100).toFixed(1)} %`);
  let shown = 0;

  const axis = (more) => ({ gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, tickcolor: css("--line"), automargin: true, ...more });
  const layout = (height, more) => ({
    height, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 12, t: 28, b: 8 },
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: css("--muted") },
    hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: css("--ink") } },
    ...more,
  });
  const draw = (id, traces, how) => Plotly.react(id, traces, how, config);
  const TICKS = {
    tickvals: [0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000],
    ticktext: ["0.1 s", "0.3 s", "1 s", "3 s", "10 s", "30 s", "1 min", "3 min", "10 min", "30 min", "1 h", "3 h", "10 h"],
  };
  // Beside one another curves have less room.
  const FEW_TICKS = { tickvals: [0.1, 1, 10, 60, 600, 3600, 36000], ticktext: ["0.1 s", "1 s", "10 s", "1 min", "10 min", "1 h", "10 h"], tickangle: 0 };
  // How busy: one hue that only gets stronger, away from the ground; nobody has to tell red from green.
  const BUSY = {
    light: ["#e6edf4", "#b5d5ea", "#5fb0e2", "#0072b2", "#07294a"],
    dark: ["#1d2a38", "#1f4f75", "#2e86bf", "#7cc8f2", "#f3faff"],
  };
  const busy = () => BUSY[theme()].map((color, index) => [index / 4, color]);
  const rowsHeight = () => Math.max(380, data.kinds.length * (60 + 26 * data.groups.length));

  function latency() {
    const single = data.groups.length === 1;
    const columns = single ? 1 : data.kinds.length;
    const traces = data.latency.map((curve) => {
      const column = single ? 0 : data.kinds.indexOf(curve.kind);
      const index = single ? data.kinds.indexOf(curve.kind) : data.groups.indexOf(curve.group);
      return {
        type: "scatter", mode: "lines", x: curve.seconds, y: curve.share, name: short(single ? curve.kind : curve.group), legendgroup: String(index),
        showlegend: single || column === 0 || !data.latency.some((other) => other.group === curve.group && data.kinds.indexOf(other.kind) < column),
        line: { color: policy(index), width: 2.5, dash: DASHES[Math.floor(index / 3) % 6], shape: "hv" },
        xaxis: column ? `x${column + 1}` : "x", yaxis: "y", customdata: curve.seconds.map(duration),
        meta: { group: curve.group, kind: curve.kind },
        hovertemplate: `%{y:.1%} within %{customdata}<extra>${short(curve.group)} · ${curve.kind}</extra>`,
      };
    });
    const more = { yaxis: axis({ tickformat: ".0%", range: [0, 1.015], tickvals: [0, 0.25, 0.5, 0.75, 0.9, 1] }), hovermode: "closest", annotations: [] };
    const gap = 0.03;
    for (let column = 0; column < columns; column++) {
      const width = (1 - gap * (columns - 1)) / columns;
      const start = column * (width + gap);
      more[column ? `xaxis${column + 1}` : "xaxis"] = axis({ type: "log", domain: [start, start + width], anchor: "y", ...(columns > 1 ? FEW_TICKS : TICKS) });
      if (!single) more.annotations.push({ text: data.kinds[column], x: start + 0.01, xref: "paper", y: 0.99, yref: "paper", showarrow: false, xanchor: "left", yanchor: "top", font: { color: css("--ink"), size: 13 } });
    }
    draw("latency", traces, layout(rowsHeight(), more));
  }

  function seconds() {
    const rows = data.kinds.length;
    const traces = data.terms.flatMap((term) => data.kinds.map((kind, row) => {
      const bars = data.seconds.filter((bar) => bar.kind === kind);
      return {
        type: "bar", orientation: "h", name: term, legendgroup: term, showlegend: row === 0, meta: { kind, term },
        x: bars.map((bar) => bar.mean[term]), y: bars.map((bar) => data.groups.indexOf(bar.group)),
        marker: { color: TERMS[theme()][term] }, width: 0.72, xaxis: row ? `x${row + 1}` : "x", yaxis: row ? `y${row + 1}` : "y",
        customdata: bars.map((bar) => [short(bar.group), duration(bar.mean[term])]), hovertemplate: `${term} %{customdata[1]}<extra>%{customdata[0]} · ${kind}</extra>`,
      };
    }));
    const more = { barmode: "stack", annotations: [], legend: { orientation: "h", x: 0, y: -0.1, yanchor: "top", traceorder: "normal", font: { color: css("--ink") } } };
    data.kinds.forEach((kind, row) => {
      const height = 1 / rows, top = 1 - row * height;
      const name = row ? row + 1 : "";
      more[`yaxis${name}`] = axis({ domain: [top - height * 0.68, top - height * 0.14], tickvals: data.groups.map((_, i) => i), ticktext: data.groups.length > 1 ? data.groups.map((g) => short(g, 18)) : [""], autorange: "reversed", showgrid: false, anchor: `x${name}` });
      more[`xaxis${name}`] = axis({ anchor: `y${name}`, ticksuffix: " s", nticks: 7 });
      more.annotations.push({ text: kind, x: 0, xref: "paper", y: top, yref: "paper", showarrow: false, xanchor: "left", yanchor: "top", font: { color: css("--ink"), size: 13 } });
    });
    draw("seconds", traces, layout(rowsHeight(), more));
  }

  function cost() {
    if (data.groups.length === 1) return costOfOne(data.groups[0]);
    const traces = data.cost.gpu_types.map((gpu, index) => ({
      type: "bar", orientation: "h", name: short(gpu), x: data.groups.map((group) => data.cost.usd[group][index]), y: data.groups.map((_, i) => i), width: 0.6,
      marker: { color: policy(index), line: { color: css("--panel"), width: 1 } }, customdata: data.groups.map((group) => short(group)), meta: { gpu },
      hovertemplate: `$%{x:.3f} per 1,000 jobs<extra>${short(gpu)} · %{customdata}</extra>`,
    }));
    draw("cost", traces, layout(Math.max(340, 180 + 34 * data.groups.length), {
      barmode: "stack", xaxis: axis({ tickprefix: "$", nticks: 6 }), legend: { orientation: "h", x: 0, y: -0.14, yanchor: "top", traceorder: "normal", font: { color: css("--ink") } },
      yaxis: axis({ tickvals: data.groups.map((_, i) => i), ticktext: data.groups.map((g) => short(g, 18)), autorange: "reversed", showgrid: false }),
    }));
  }
  function costOfOne(group) {
    const types = data.cost.gpu_types, usd = data.cost.usd[group];
    draw("cost", [{
      type: "bar", orientation: "h", x: usd, y: types.map((_, i) => i), width: 0.66, marker: { color: css("--accent") }, text: usd.map((value) => `$${value.toFixed(2)}`),
      textposition: "outside", cliponaxis: false, hovertemplate: "$%{x:.3f} per 1,000 jobs<extra></extra>", meta: { group },
    }], layout(340, {
      margin: { l: 8, r: 48, t: 8, b: 8 }, xaxis: axis({ visible: false }),
      yaxis: axis({ tickvals: types.map((_, i) => i), ticktext: types.map((gpu) => short(gpu, 18)), autorange: "reversed", showgrid: false, tickfont: { color: css("--ink") } }),
    }));
  }

  function heatmap(run) {
    const text = run.sites.map((site) => run.hours.map(() => escaped(site)));
    draw("heatmap", [{
      type: "heatmap", x: run.hours, y: run.sites.map((_, i) => i), z: run.utilisation, zmin: 0, zmax: 1, colorscale: busy(), xgap: 0, ygap: 1, text, hoverongaps: false,
      hovertemplate: "%{text}<br>%{x:.1f} h: %{z:.0%} busy<extra></extra>", colorbar: { tickformat: ".0%", thickness: 12, outlinewidth: 0, len: 0.9 },
    }], layout(Math.max(260, 60 + 17 * run.sites.length), {
      margin: { l: 8, r: 8, t: 8, b: 8 }, xaxis: axis({ ticksuffix: " h", showgrid: false }),
      yaxis: axis({ tickvals: run.sites.map((_, i) => i), ticktext: run.sites.map((s) => short(s, 22)), autorange: "reversed", showgrid: false, tickfont: { size: 11 } }),
    }));
  }

  function changes(run) {
    const bar = (name, values, sign, color) => ({
      type: "bar", name, x: run.hours, y: values.map((value) => sign * value), marker: { color, line: { width: 0 } }, customdata: values,
      hovertemplate: `%{x:.1f} h: %{customdata} ${name}<extra></extra>`,
    });
    // Both ways from zero, and no count is negative.
    const most = Math.max(1, ...run.cold_starts, ...run.evictions), power = 10 ** Math.floor(Math.log10(most));
    const step = Math.max(1, [0.5, 1, 2, 5].map((part) => part * power).find((part) => most / part <= 4) ?? power);
    const ticks = Array.from({ length: 2 * Math.floor(most / step) + 1 }, (_, i) => (i - Math.floor(most / step)) * step);
    draw("changes", [bar("cold starts", run.cold_starts, 1, policy(1)), bar("evictions", run.evictions, -1, policy(6))], layout(340, {
      barmode: "relative", bargap: 0.1, xaxis: axis({ ticksuffix: " h", showgrid: false }), yaxis: axis({ zeroline: true, zerolinecolor: css("--muted"), tickvals: ticks, ticktext: ticks.map((tick) => Math.abs(tick).toLocaleString("en")) }),
    }));
  }

  function map(run) {
    const most = Math.max(1, ...run.map.map((site) => site.slots));
    const wide = document.getElementById("map").clientWidth, scale = Math.min(1, wide / 1250);
    draw("map", [
      { type: "scatter", mode: "markers", x: data.land.map((p) => p[0]), y: data.land.map((p) => p[1]), hoverinfo: "skip", showlegend: false, marker: { size: Math.max(1.4, 3.4 * scale), color: theme() === "dark" ? "#2b3949" : "#d3dbe3" } },
      {
        type: "scatter", mode: "markers", x: run.map.map((s) => s.longitude), y: run.map.map((s) => s.latitude), showlegend: false,
        customdata: run.map.map((s) => [escaped(s.site), escaped(s.region), s.slots, escaped(s.gpu_types.join(", ")), s.jobs.toLocaleString("en"), percent(s.utilisation)]),
        marker: {
          size: run.map.map((s) => 7 + (2 + 30 * Math.sqrt(s.slots / most)) * scale), color: run.map.map((s) => s.utilisation), cmin: 0, cmax: 1, colorscale: busy(), opacity: 0.92,
          line: { color: theme() === "dark" ? "#9ad4f5" : "#07294a", width: 1 }, colorbar: { tickformat: ".0%", thickness: 12, outlinewidth: 0, len: 0.5 },
        },
        hovertemplate: "<b>%{customdata[0]}</b> %{customdata[1]}<br>%{customdata[2]} slots: %{customdata[3]}<br>%{customdata[5]} busy, %{customdata[4]} jobs<extra></extra>",
      },
    ], layout(Math.max(220, 520 * scale), {
      margin: { l: 0, r: 8, t: 0, b: 0 }, xaxis: { visible: false, range: [-172, 182] }, yaxis: { visible: false, range: [-57, 80], scaleanchor: "x", scaleratio: 1.15 }, dragmode: "pan",
    }));
  }

  function drawRun() {
    const run = data.runs[shown];
    heatmap(run);
    changes(run);
    map(run);
  }
  function drawAll() {
    document.querySelectorAll("[data-policy]").forEach((mark) => { mark.style.background = policy(Number(mark.dataset.policy)); });
    latency();
    seconds();
    cost();
    drawRun();
  }

  const chooser = document.getElementById("run");
  if (chooser) chooser.addEventListener("change", () => { shown = Number(chooser.value); drawRun(); });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const set = (name) => {
    root.dataset.theme = name;
    document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
    drawAll();
  };
  dark.addEventListener("change", () => set(dark.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => set(theme() === "dark" ? "light" : "dark"));
  set(dark.matches ? "dark" : "light");
})();
