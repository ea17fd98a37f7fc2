'use strict';
// Small plots in SVG and canvas. Each can be read with the mouse, with the arrow keys, and from its data-values.

function element(name, attributes = {}, ...children) {
  const svg = ['svg', 'g', 'path', 'line', 'text', 'circle'].includes(name);
  const made = svg ? document.createElementNS('http://www.w3.org/2000/svg', name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter(child => child !== null));
  return made;
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Round numbers that part [low, high] into about `count` pieces.
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(size => size >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function brief(value) {
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return String(+value.toPrecision(size >= 1000 ? 4 : 3));
}

function tipIn(figure) {
  const tip = element('div', {class: 'tip', hidden: ''});
  figure.append(tip);
  return {
    show(x, y, text) {
      tip.textContent = text;
      tip.hidden = false;
      const half = tip.offsetWidth / 2;
      tip.style.left = `${Math.min(Math.max(x, half), figure.clientWidth - half)}px`;
      tip.style.top = `${Math.max(y, tip.offsetHeight)}px`;
    },
    hide() { tip.hidden = true; },
  };
}

function legend(entries) {
  const box = element('div', {class: 'legend'});
  for (const [name, paint] of entries) {
    const swatch = element('i');
    swatch.style.background = paint;
    box.append(element('span', {}, swatch, name));
  }
  return box;
}

// Curves: series is [{name, points: [[x, y], ...]}], base a value drawn across. They run over steps, unless `along` names
// something else, of few values, which are then marked; `names` are what stands at 0, 1, 2, ... where those are no numbers.
function lines(title, series, {unit, base = null, zero = false, along = 'step', names = null}) {
  const figure = element('figure', {'data-values': JSON.stringify(series), 'data-plot': title});
  const height = 240, left = 52, bottom = 26, top = 10, right = 10;
  const tip = tipIn(figure);
  const all = series.flatMap(each => each.points);
  const xs = all.map(point => point[0]);
  const ys = all.map(point => point[1]).concat(base === null ? [] : [base], zero ? [0] : []);
  const spread = list => list.reduce(([low, high], at) => [Math.min(low, at), Math.max(high, at)], [Infinity, -Infinity]);
  const [xLow, xHigh] = spread(xs), [yBottom, yTop] = spread(ys);
  const margin = (yTop - yBottom || Math.abs(yTop) || 1) * 0.06;
  const yLow = zero ? 0 : yBottom - margin, yHigh = yTop + margin;
  let cursor = -1, width = 0, svg = null;
  const x = at => left + (at - xLow) / (xHigh - xLow || 1) * (width - left - right);
  const y = at => height - bottom - (at - yLow) / (yHigh - yLow || 1) * (height - bottom - top);

  function draw() {
    width = figure.clientWidth || 600;
    const had = svg !== null && document.activeElement === svg;
    if (svg) svg.remove();
    svg = element('svg', {viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: 'img', 'aria-label': describe()});
    const axis = element('g', {class: 'axis'});
    for (const at of ticks(yLow, yHigh, 5)) {
      axis.append(element('line', {x1: left, x2: width - right, y1: y(at), y2: y(at)}));
      axis.append(element('text', {x: left - 7, y: y(at) + 4, 'text-anchor': 'end'}, brief(at)));
    }
    for (const at of names ? names.keys() : ticks(xLow, xHigh, Math.max(2, width / 110))) {
      axis.append(element('text', {x: x(at), y: height - 8, 'text-anchor': names ? ends(at) : 'middle'}, called(at)));
    }
    svg.append(axis);
    if (base !== null) svg.append(element('line', {class: 'base', x1: left, x2: width - right, y1: y(base), y2: y(base)}));
    series.forEach((each, index) => {
      const path = each.points.map((point, at) => `${at ? 'L' : 'M'}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`);
      svg.append(element('path', {class: 'curve', stroke: `var(--s${index % 6})`, d: path.join('')}));
      for (const [px, py] of along === 'step' ? [] : each.points) {
        svg.append(element('circle', {cx: x(px), cy: y(py), r: 3, fill: `var(--s${index % 6})`}));
      }
    });
    svg.append(element('g', {class: 'cursor'}));
    svg.addEventListener('pointermove', event => point(event.offsetX));
    svg.addEventListener('pointerleave', clear);
    svg.addEventListener('blur', clear);
    svg.addEventListener('keydown', key);
    figure.prepend(svg);
    if (had) svg.focus();
  }
  function called(at) { return names ? names[at] : brief(at); }
  function ends(at) { return at === 0 ? 'start' : at === names.length - 1 ? 'end' : 'middle'; }
  function describe() {
    const ends = series.map(each => each.points.length ? `${each.name} ends at ${brief(each.points.at(-1)[1])} ${unit}` : '');
    return `${title}. ${ends.join('; ')}. Arrow keys read the values.`;
  }
  function nearest(points, at) {
    return points.reduce((best, each) => Math.abs(each[0] - at) < Math.abs(best[0] - at) ? each : best);
  }
  function show(at) {
    const group = svg.querySelector('.cursor');
    group.replaceChildren();
    const found = series.filter(each => each.points.length).map(each => ({...each, point: nearest(each.points, at)}));
    if (!found.length) return;
    const here = found[0].point[0];
    group.append(element('line', {class: 'mark', x1: x(here), x2: x(here), y1: top, y2: height - bottom}));
    series.forEach((each, index) => {
      if (!each.points.length) return;
      const [px, py] = nearest(each.points, at);
      group.append(element('circle', {cx: x(px), cy: y(py), r: 3.5, fill: `var(--s${index % 6})`}));
    });
    const rows = found.map(each => `${series.length > 1 ? each.name + '  ' : ''}${brief(each.point[1])} ${unit}`);
    tip.show(x(here), y(found[0].point[1]) - 6, `${along} ${called(here)}\n${rows.join('\n')}`);
  }
  function point(offset) {
    show(xLow + (offset - left) / (width - left - right) * (xHigh - xLow));
  }
  function clear() {
    tip.hide();
    svg.querySelector('.cursor').replaceChildren();
    cursor = -1;
  }
  function key(event) {
    const points = series.find(each => each.points.length)?.points ?? [];
    const moves = {ArrowRight: 1, ArrowLeft: -1, PageDown: 20, PageUp: -20, Home: -points.length, End: points.length};
    if (!(event.key in moves) || !points.length) return;
    event.preventDefault();
    cursor = Math.min(points.length - 1, Math.max(0, cursor + moves[event.key]));
    show(points[cursor][0]);
  }
  new ResizeObserver(() => { if (figure.clientWidth !== width) draw(); }).observe(figure);
  if (series.length > 1) figure.append(legend(series.map((each, index) => [each.name, `var(--s${index % 6})`])));
  draw();
  return figure;
}

// What every rank did in the recorded steps. Wheel or + and - zoom, drag or the arrow keys move, 0 shows all.
function timeline(title, data, paints, label) {
  const figure = element('figure', {'data-plot': title, 'data-spans': data.rows.length});
  const canvas = element('canvas', {tabindex: 0, role: 'img', 'aria-label':
    `${title}: ${data.rows.length} spans on ${data.ranks.length} ranks. Plus and minus zoom, arrows move, 0 shows all.`});
  const row = 30, left = 30, bottom = 22, height = data.ranks.length * row + bottom;
  const end = data.rows.reduce((last, span) => Math.max(last, span[2] + span[3]), 0);
  const tip = tipIn(figure);
  let from = 0, to = end, width = 0, dragged = null;
  const x = at => left + (at - from) / (to - from) * (width - left);
  const lane = rank => data.ranks.indexOf(rank) * row;
  const inner = kind => ['recompute', 'receive', 'send wait', 'sum', 'data'].includes(data.kinds[kind]);

  function draw() {
    width = figure.clientWidth || 600;
    const scale = window.devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = height * scale;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext('2d');
    pen.scale(scale, scale);
    pen.font = '11px system-ui, sans-serif';
    const ink = {soft: color('soft'), card: color('card'), paints: data.kinds.map(kind => color(paints[kind]))};
    for (const span of data.rows) if (!inner(span[1])) box(pen, span, ink, 4, row - 8);
    for (const span of data.rows) if (inner(span[1])) box(pen, span, ink, 4, row - 8);
    for (const span of data.rows) if (!inner(span[1])) name(pen, span, ink);
    pen.clearRect(0, 0, left, height);
    pen.fillStyle = ink.soft;
    for (const rank of data.ranks) pen.fillText(rank, 4, lane(rank) + row / 2 + 4);
    for (const at of ticks(from / 1e3, to / 1e3, Math.max(2, width / 130))) {
      pen.fillText(`${brief(at)} ms`, Math.min(x(at * 1e3) + 2, width - 50), height - 6);
    }
    figure.dataset.from = from;
    figure.dataset.to = to;
  }
  function box(pen, [rank, kind, begin, duration], ink, y, tall) {
    const start = Math.max(left, x(begin)), size = Math.min(width, x(begin + duration)) - start;
    if (size <= 0) return;
    pen.fillStyle = ink.paints[kind];
    pen.fillRect(start, lane(rank) + y, Math.max(size - 0.4, 0.5), tall);
  }
  // At the right end of a box: waiting and recomputation are at its left.
  function name(pen, [rank, , begin, duration, , minibatch], ink) {
    const text = String(minibatch ?? ''), stop = Math.min(width, x(begin + duration));
    if (!text || stop - Math.max(left, x(begin)) < 9 * text.length + 4) return;
    pen.fillStyle = ink.card;
    pen.fillText(text, stop - pen.measureText(text).width - 3, lane(rank) + row / 2 + 4);
  }
  function zoom(factor, around) {
    const size = Math.min(end, Math.max(end / 5000, (to - from) * factor));
    const share = (around - from) / (to - from);
    from = Math.min(Math.max(0, around - share * size), end - size);
    to = from + size;
    draw();
  }
  function move(by) {
    const size = to - from;
    from = Math.min(Math.max(0, from + by), end - size);
    to = from + size;
    draw();
  }
  const at = offset => from + (offset - left) / (width - left) * (to - from);
  canvas.addEventListener('wheel', event => {
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, at(event.offsetX));
  }, {passive: false});
  canvas.addEventListener('pointerdown', event => { dragged = event.offsetX; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener('pointerup', () => { dragged = null; });
  canvas.addEventListener('pointerleave', () => tip.hide());
  canvas.addEventListener('pointermove', event => {
    if (dragged !== null) {
      move((dragged - event.offsetX) / (width - left) * (to - from));
      dragged = event.offsetX;
      return;
    }
    const rank = data.ranks[Math.floor(event.offsetY / row)], time = at(event.offsetX);
    const here = data.rows.filter(span => span[0] === rank && span[2] <= time && time <= span[2] + span[3]);
    if (here.length) tip.show(event.offsetX, lane(rank) + 4, here.map(label).join('\n'));
    else tip.hide();
  });
  canvas.addEventListener('keydown', event => {
    const middle = (from + to) / 2, part = (to - from) / 8;
    const keys = {
      '+': () => zoom(0.6, middle), '=': () => zoom(0.6, middle), '-': () => zoom(1.7, middle),
      ArrowRight: () => move(part), ArrowLeft: () => move(-part), '0': () => { from = 0; to = end; draw(); },
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  figure.append(canvas);
  figure.append(legend([...new Set(data.rows.map(span => span[1]))].sort((a, b) => a - b)
    .map(kind => [data.kinds[kind], `var(--${paints[data.kinds[kind]]})`])));
  new ResizeObserver(() => { if (figure.clientWidth !== width) draw(); }).observe(figure);
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  draw();
  return figure;
}
