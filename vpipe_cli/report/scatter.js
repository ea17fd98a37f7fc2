// Points by two numbers, of which more is better upwards and less to the left; the best ones joined. Arrow keys walk along.

function scatter(title, points, {x: across, y: up}) {
  const figure = element('figure', {'data-values': JSON.stringify(points), 'data-plot': title});
  const height = 320, left = 52, bottom = 40, top = 14, right = 16;
  const tip = tipIn(figure);
  const ordered = [...points].sort((a, b) => a.x - b.x);
  const range = key => {
    const values = points.map(point => point[key]), low = Math.min(...values), high = Math.max(...values);
    const margin = (high - low || Math.abs(high) || 1) * 0.1;
    return [low - margin, high + margin];
  };
  const [xLow, xHigh] = range('x'), [yLow, yHigh] = range('y');
  let width = 0, svg = null, cursor = -1;
  const x = at => left + (at - xLow) / (xHigh - xLow) * (width - left - right);
  const y = at => height - bottom - (at - yLow) / (yHigh - yLow) * (height - bottom - top);

  function draw() {
    width = figure.clientWidth || 600;
    if (svg) svg.remove();
    svg = element('svg', {viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: 'img',
      'aria-label': `${title}: ${points.length} trials. Arrow keys read them.`});
    const axis = element('g', {class: 'axis'});
    for (const at of ticks(yLow, yHigh, 5)) {
      axis.append(element('line', {x1: left, x2: width - right, y1: y(at), y2: y(at)}));
      axis.append(element('text', {x: left - 7, y: y(at) + 4, 'text-anchor': 'end'}, brief(at)));
    }
    for (const at of ticks(xLow, xHigh, Math.max(2, width / 130))) {
      axis.append(element('text', {x: x(at), y: height - 22, 'text-anchor': 'middle'}, brief(at)));
    }
    axis.append(element('text', {x: width - right, y: height - 5, 'text-anchor': 'end'}, `${across} \u2192`));
    axis.append(element('text', {x: left, y: 10}, `\u2191 ${up}`));
    svg.append(axis);
    const front = ordered.filter(point => point.front);
    const path = front.map((point, at) => `${at ? 'L' : 'M'}${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`);
    svg.append(element('path', {class: 'curve front', d: path.join('')}));
    for (const point of ordered) svg.append(mark(point));
    svg.addEventListener('blur', () => { tip.hide(); cursor = -1; });
    svg.addEventListener('keydown', key);
    figure.prepend(svg);
  }
  function mark(point) {
    const paint = point.front ? 'var(--s0)' : 'var(--other)';
    const [px, py] = [x(point.x), y(point.y)];
    const made = point.chosen
      ? element('path', {d: `M${px - 6} ${py - 6}h12v12h-12z`, fill: paint, stroke: 'var(--s1)', 'stroke-width': 3})
      : element('circle', {cx: px, cy: py, r: 5, fill: paint});
    made.addEventListener('pointerenter', () => show(point));
    made.addEventListener('pointerleave', () => tip.hide());
    made.addEventListener('click', () => { location.hash = point.target; });
    return made;
  }
  function show(point) {
    tip.show(x(point.x), y(point.y) - 8, `${point.name}\n${brief(point.y)} ${up}\n${brief(point.x)} ${across}`);
  }
  function key(event) {
    const move = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (event.key === 'Enter' && cursor >= 0) location.hash = ordered[cursor].target;
    if (!move) return;
    event.preventDefault();
    cursor = Math.min(ordered.length - 1, Math.max(0, cursor + move));
    show(ordered[cursor]);
  }
  new ResizeObserver(() => { if (figure.clientWidth !== width) draw(); }).observe(figure);
  draw();
  return figure;
}
