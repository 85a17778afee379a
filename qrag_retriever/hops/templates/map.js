"use strict";
/* The map: Q-values per hop over the chunks, drawn on a canvas from packed codes. It reads and shows numbers only. */
(() => {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const box = document.getElementById("map");
  const canvas = box.querySelector("canvas");
  const status = document.getElementById("map-status");
  const brush = canvas.getContext("2d");

  const STRIP = 96, GAP = 26, TOP = 18, AXIS = 46, RIGHT = 14;
  const FEWEST = Math.min(data.numChunks, 8);
  const ZOOM = 1.6;
  const MINUS = "\u2212", DASH = "\u2013";
  const top = data.bytes === 2 ? 65535 : 255;
  const font = getComputedStyle(document.body).fontFamily;
  const first = data.firstChunk === null ? 0 : data.firstChunk;
  const hops = data.hops.map(unpacked);
  const seen = { from: 0, to: data.numChunks };
  let pointer = null, pending = false, colours = null;

  function unpacked(hop) {
    const bytes = Uint8Array.from(atob(hop.codes), (letter) => letter.charCodeAt(0));
    const codes = data.bytes === 2 ? new Uint16Array(bytes.buffer) : bytes;
    const half = codes.length / 2;
    return Object.assign(hop, {
      codes: null,
      lows: data.width === 1 ? codes : codes.subarray(0, half),
      highs: data.width === 1 ? codes : codes.subarray(half),
    });
  }

  /* What is to be seen, in chunks from the first one. */

  const span = () => seen.to - seen.from;

  function show(from, length) {
    const wanted = Math.min(Math.max(length, FEWEST), data.numChunks);
    seen.from = Math.min(Math.max(from, 0), data.numChunks - wanted);
    seen.to = seen.from + wanted;
    redraw();
  }

  function zoom(factor, centre) {
    const middle = centre === undefined ? (seen.from + seen.to) / 2 : centre;
    const length = Math.min(Math.max(span() * factor, FEWEST), data.numChunks);
    show(middle - (middle - seen.from) * (length / span()), length);
  }

  function goTo(number) {
    const hop = hops[number - 1];
    if (!hop || !hop.pick) return false;
    const length = Math.min(span(), Math.max(60, data.numChunks / 40));
    show(hop.pick.place + 0.5 - length / 2, length);
    return true;
  }

  function press(key) {
    if (key === "+" || key === "=") zoom(1 / ZOOM);
    else if (key === "-" || key === "_") zoom(ZOOM);
    else if (key === "ArrowLeft") show(seen.from - span() * 0.15, span());
    else if (key === "ArrowRight") show(seen.from + span() * 0.15, span());
    else if (key === "PageUp") show(seen.from - span() * 0.9, span());
    else if (key === "PageDown") show(seen.from + span() * 0.9, span());
    else if (key === "Home") show(0, span());
    else if (key === "End") show(data.numChunks, span());
    else if (key === "0") show(0, data.numChunks);
    else return /^[1-9]$/.test(key) && goTo(Number(key));
    return true;
  }

  /* Drawing. */

  const gutter = () => (canvas.clientWidth < 520 ? 46 : 62);
  const plotWidth = () => Math.max(canvas.clientWidth - gutter() - RIGHT, 1);
  const xOf = (place) => gutter() + ((place - seen.from) / span()) * plotWidth();
  const placeAt = (x) => seen.from + ((x - gutter()) / plotWidth()) * span();
  const topOf = (row) => TOP + row * (STRIP + GAP);
  const height = () => TOP + hops.length * (STRIP + GAP) - GAP + AXIS;
  const number = (value, digits) => (value < 0 ? MINUS : "") + Math.abs(value).toFixed(digits);
  const label = (place) => (first + Math.floor(place)).toLocaleString("en");

  function yOf(hop, row, value) {
    const share = hop.high > hop.low ? (value - hop.low) / (hop.high - hop.low) : 0.5;
    return topOf(row) + STRIP - 3 - share * (STRIP - 16);
  }

  function valueOf(hop, code) {
    return hop.low + ((code - 1) / (top - 1)) * (hop.high - hop.low);
  }

  /* Lowest and highest code of the chunks in [from, to); zeros where none can be picked. */
  function extremes(hop, from, to) {
    const start = Math.floor(from / data.width);
    const stop = Math.max(start + 1, Math.min(Math.ceil(to / data.width), hop.highs.length));
    let low = 0, high = 0;
    for (let i = start; i < stop; i++) {
      if (hop.highs[i] > high) high = hop.highs[i];
      if (hop.lows[i] && (!low || hop.lows[i] < low)) low = hop.lows[i];
    }
    return [low, high];
  }

  function palette() {
    const style = getComputedStyle(document.documentElement);
    const names = ["paper", "ink", "quiet", "line", "value", "value-soft", "pick", "on-pick", "band"];
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
  }

  function redraw() {
    box.dataset.from = String(Math.round(seen.from));
    box.dataset.to = String(Math.round(seen.to));
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      draw();
      report();
    });
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const across = Math.round(width * ratio), down = Math.round(height() * ratio);
    if (canvas.width !== across || canvas.height !== down) {
      canvas.style.height = height() + "px";
      canvas.width = across;
      canvas.height = down;
    }
    brush.setTransform(ratio, 0, 0, ratio, 0, 0);
    brush.clearRect(0, 0, width, height());
    colours = colours || palette();
    hops.forEach((hop, row) => {
      brush.save();
      brush.beginPath();
      brush.rect(gutter(), topOf(row) - TOP, plotWidth(), STRIP + TOP);
      brush.clip();
      drawSegments(hop, row);
      drawValues(hop, row, ratio);
      drawThreshold(hop, row);
      drawEarlier(hop, row);
      drawRunnerUp(hop, row);
      brush.restore();
      drawFrame(hop, row);
      drawPick(hop, row);
    });
    drawAxis();
    drawOverview();
  }

  function write(text, x, y, colour, align, weight) {
    brush.font = (weight || "400") + " 11.5px " + font;
    brush.fillStyle = colour;
    brush.textAlign = align || "left";
    brush.textBaseline = "alphabetic";
    brush.fillText(text, x, y);
    return brush.measureText(text).width;
  }

  function line(x1, y1, x2, y2, colour, width, dashes) {
    brush.beginPath();
    brush.setLineDash(dashes || []);
    brush.strokeStyle = colour;
    brush.lineWidth = width;
    brush.moveTo(x1, y1);
    brush.lineTo(x2, y2);
    brush.stroke();
    brush.setLineDash([]);
  }

  function drawSegments(hop, row) {
    hop.segments.forEach(([from, to, low, high], index) => {
      const left = Math.max(xOf(from), gutter()), right = Math.min(xOf(to), gutter() + plotWidth());
      if (right <= left) return;
      if (index % 2) {
        brush.fillStyle = colours.band;
        brush.fillRect(left, topOf(row), right - left, STRIP);
      }
      const text = (right - left > 110 ? "positions " : "") + low + DASH + high;
      if (right - left > 56) write(text, (left + right) / 2, topOf(row) - 5, colours.quiet, "center");
    });
  }

  function drawValues(hop, row, ratio) {
    const bottom = topOf(row) + STRIP, count = Math.ceil(plotWidth() * ratio), step = plotWidth() / count;
    const area = new Path2D(), gone = new Path2D(), tops = new Float64Array(count), bottoms = new Float64Array(count);
    let anyGone = false;
    area.moveTo(gutter(), bottom);
    for (let column = 0; column < count; column++) {
      const x = gutter() + column * step;
      const from = seen.from + (column / count) * span();
      const [low, high] = extremes(hop, from, seen.from + ((column + 1) / count) * span());
      tops[column] = high ? yOf(hop, row, valueOf(hop, high)) : bottom;
      bottoms[column] = high ? yOf(hop, row, valueOf(hop, low)) : bottom;
      area.lineTo(x, tops[column]);
      area.lineTo(x + step, tops[column]);
      if (!high) {
        gone.rect(x, topOf(row), step, STRIP);
        anyGone = true;
      }
    }
    area.lineTo(gutter() + plotWidth(), bottom);
    brush.fillStyle = colours["value-soft"];
    brush.fill(area);
    brush.fillStyle = colours.value;
    brush.globalAlpha = 0.75;
    for (let column = 0; column < count; column++) {
      if (tops[column] === bottom) continue;
      // Down to the neighbour's height too, so that the line of the tops has no gaps.
      const reach = Math.max(bottoms[column], Math.min(column ? tops[column - 1] : 0, bottom), tops[column] + 1.5);
      brush.fillRect(gutter() + column * step, tops[column], step, reach - tops[column]);
    }
    brush.globalAlpha = 1;
    if (anyGone) hatch(gone, row);
  }

  function hatch(region, row) {
    brush.save();
    brush.clip(region);
    brush.globalAlpha = 0.45;
    const lines = new Path2D();
    for (let x = gutter() - STRIP; x < gutter() + plotWidth(); x += 6) {
      lines.moveTo(x, topOf(row) + STRIP);
      lines.lineTo(x + STRIP, topOf(row));
    }
    brush.strokeStyle = colours.quiet;
    brush.lineWidth = 1;
    brush.stroke(lines);
    brush.restore();
  }

  function drawThreshold(hop, row) {
    if (data.minQ === null) return;
    const y = yOf(hop, row, data.minQ);
    line(gutter(), y, gutter() + plotWidth(), y, colours.quiet, 1, [5, 4]);
  }

  function drawEarlier(hop, row) {
    let taken = -Infinity, raised = 0;
    const marks = hop.earlier.map((mark, index) => ({ x: xOf(mark.place + 0.5), name: String(index + 1) }));
    marks.sort((a, b) => a.x - b.x);
    marks.forEach(({ x, name }) => {
      line(x, topOf(row), x, topOf(row) + STRIP, colours.pick, 1.2, [3, 3]);
      raised = x - taken < 17 ? raised + 1 : 0;
      taken = x;
      const y = topOf(row) + STRIP - 10 - (raised % 5) * 17;
      brush.beginPath();
      brush.arc(x, y, 7.5, 0, 2 * Math.PI);
      brush.fillStyle = colours.paper;
      brush.fill();
      brush.strokeStyle = colours.pick;
      brush.lineWidth = 1.2;
      brush.stroke();
      write(name, x, y + 4, colours.pick, "center", "600");
    });
  }

  function drawRunnerUp(hop, row) {
    if (!hop.runnerUp) return;
    const x = xOf(hop.runnerUp.place + 0.5), y = yOf(hop, row, hop.runnerUp.q);
    brush.beginPath();
    brush.moveTo(x, y - 5);
    brush.lineTo(x + 5, y);
    brush.lineTo(x, y + 5);
    brush.lineTo(x - 5, y);
    brush.closePath();
    brush.fillStyle = colours.paper;
    brush.fill();
    brush.strokeStyle = colours.pick;
    brush.lineWidth = 1.4;
    brush.stroke();
  }

  function drawFrame(hop, row) {
    const bottom = topOf(row) + STRIP, edge = gutter() - 8;
    line(gutter(), bottom + 0.5, gutter() + plotWidth(), bottom + 0.5, colours.line, 1);
    const narrow = gutter() < 60;
    write(hop.pick ? (narrow ? "" : "hop ") + (row + 1) : narrow ? "end" : "stopped", edge, topOf(row) + STRIP / 2 + 4, colours.ink, "right", "600");
    if (hop.high > hop.low) {
      write(number(hop.high, 2), edge, yOf(hop, row, hop.high) + 4, colours.quiet, "right");
      write(number(hop.low, 2), edge, yOf(hop, row, hop.low) + 2, colours.quiet, "right");
    }
  }

  /* The pick is drawn from its own numbers, so no narrowing down can lose it; outside, an arrow shows where it is. */
  function drawPick(hop, row) {
    if (!hop.pick) return;
    const left = gutter(), right = gutter() + plotWidth();
    const x = xOf(hop.pick.place + 0.5), y = yOf(hop, row, hop.pick.q);
    const text = "chunk " + hop.pick.chunk.toLocaleString("en");
    if (x < left || x > right) {
      const outside = x < left ? "\u2190 " + text : text + " \u2192";
      framed(outside, x < left ? left + 4 : right - 4, topOf(row) + 14, x < left ? "left" : "right");
      return;
    }
    line(x, y, x, topOf(row) + STRIP, colours.pick, 1.6);
    brush.beginPath();
    brush.arc(x, y, 5, 0, 2 * Math.PI);
    brush.fillStyle = colours.pick;
    brush.fill();
    brush.strokeStyle = colours.paper;
    brush.lineWidth = 1.5;
    brush.stroke();
    const name = text + "   " + number(hop.pick.q, 3);
    const turned = labelTurnsLeft(hop, x, 150);
    framed(name, turned ? x - 10 : x + 10, y + 4, turned ? "right" : "left");
  }

  /* Where there is room on both sides, keep off the earlier picks. */
  function labelTurnsLeft(hop, x, width) {
    if (x - width < gutter()) return false;
    if (x + width > gutter() + plotWidth()) return true;
    const marks = hop.earlier.map((mark) => xOf(mark.place + 0.5) - x);
    return marks.some((gap) => gap > 0 && gap < width) && !marks.some((gap) => gap < 0 && gap > -width);
  }

  function framed(text, x, y, align) {
    brush.font = "600 11.5px " + font;
    const width = brush.measureText(text).width;
    brush.globalAlpha = 0.85;
    brush.fillStyle = colours.paper;
    brush.fillRect(align === "left" ? x - 3 : x - width - 3, y - 12, width + 6, 16);
    brush.globalAlpha = 1;
    write(text, x, y, colours.pick, align, "600");
  }

  function drawAxis() {
    const base = topOf(hops.length - 1) + STRIP;
    const most = Math.max(2, Math.floor(plotWidth() / 110));
    const raw = span() / most, power = 10 ** Math.floor(Math.log10(Math.max(raw, 1)));
    const step = Math.max(1, [1, 2, 5, 10].map((part) => part * power).find((size) => size >= raw) || 1);
    for (let tick = Math.ceil((first + seen.from) / step) * step; tick < first + seen.to; tick += step) {
      const x = xOf(tick - first + 0.5);
      if (x > gutter() + plotWidth()) break;
      line(x, base, x, base + 4, colours.quiet, 1);
      write(tick.toLocaleString("en"), x, base + 17, colours.quiet, "center");
    }
  }

  /* The whole document as a bar, with the part that is seen and the picks. */
  function drawOverview() {
    const y = height() - 12, scale = plotWidth() / data.numChunks;
    brush.fillStyle = colours.line;
    brush.fillRect(gutter(), y, plotWidth(), 4);
    brush.fillStyle = colours.value;
    brush.fillRect(gutter() + seen.from * scale, y, Math.max(span() * scale, 3), 4);
    hops.filter((hop) => hop.pick).forEach((hop) => {
      const x = gutter() + (hop.pick.place + 0.5) * scale;
      line(x, y - 3, x, y + 7, colours.pick, 2);
    });
  }

  /* What is seen, in words: the range, and under the pointer the values. */
  function report() {
    status.ariaLive = "polite";
    const of = data.numChunks.toLocaleString("en");
    const what = data.firstChunk === null ? "Places " : "Chunks ";
    status.textContent = what + label(seen.from) + " to " + label(Math.max(seen.to - 1e-6, 0)) + " (" + of + " in all)";
  }

  function hover(x) {
    const place = Math.floor(placeAt(x));
    if (place < 0 || place >= data.numChunks || x < gutter()) return report();
    const start = Math.floor(place / data.width) * data.width;
    const end = Math.min(start + data.width, data.numChunks) - 1;
    const values = hops.map((hop, row) => {
      const [low, high] = extremes(hop, place, place + 1);
      const value = high ? number(valueOf(hop, high), 2) : "not available";
      const range = high && low !== high ? number(valueOf(hop, low), 2) + " to " + value : value;
      return (hop.pick ? "hop " + (row + 1) : "stopped") + ": " + range;
    });
    status.ariaLive = "off"; // a moving mouse is not for the ears
    const where = label(start) + (end > start ? DASH + label(end) : "");
    status.textContent = (data.firstChunk === null ? "Place " : "Chunk ") + where + "   " + values.join("   ");
  }

  /* Events. */

  function listen() {
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (press(event.key)) event.preventDefault();
    });
    document.querySelectorAll("button[data-key]").forEach((button) => {
      button.addEventListener("click", () => press(button.dataset.key));
    });
    document.querySelectorAll("button[data-go]").forEach((button) => {
      button.addEventListener("click", () => {
        goTo(Number(button.dataset.go));
        if (!button.classList.contains("go")) return;
        box.scrollIntoView({ block: "center" });
        box.focus({ preventScroll: true });
      });
    });
    const inside = (event) => event.clientX - canvas.getBoundingClientRect().left;
    box.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1 / 1.25 : 1.25, placeAt(inside(event)));
    }, { passive: false });
    box.addEventListener("dblclick", (event) => zoom(event.shiftKey ? ZOOM : 1 / ZOOM, placeAt(inside(event))));
    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      pointer = { x: event.clientX, from: seen.from };
      box.setPointerCapture(event.pointerId);
      box.classList.add("dragged");
    });
    box.addEventListener("pointermove", (event) => {
      if (!pointer) return hover(inside(event));
      show(pointer.from - ((event.clientX - pointer.x) / plotWidth()) * span(), span());
    });
    ["pointerup", "pointercancel"].forEach((name) => box.addEventListener(name, () => {
      pointer = null;
      box.classList.remove("dragged");
    }));
    box.addEventListener("pointerleave", report);
    new ResizeObserver(redraw).observe(box);
    ["(prefers-color-scheme: dark)", "(prefers-contrast: more)"].forEach((query) => {
      matchMedia(query).addEventListener("change", () => {
        colours = null;
        redraw();
      });
    });
  }

  document.documentElement.classList.add("scripted");
  listen();
  redraw();
})();
