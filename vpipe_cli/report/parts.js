// What pages are made of: numbers as text, tables, sections. All of a run is written as text, never as HTML.

const PAINTS = {
  forward: 'forward', backward: 'backward', 'input grad': 'backward', 'weight grad': 'weight', update: 'update',
  recompute: 'again', receive: 'wait', 'send wait': 'wait', sum: 'wait', data: 'other',
};
const PARTS = [['forward', 'forward'], ['backward', 'backward'], ['update', 'update'], ['wait', 'wait'], ['other', 'other']];

const number = (value, digits = 3) => value === null || value === undefined ? '' : (+value).toFixed(digits);
const time = seconds => {
  const whole = Math.round(seconds), [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const two = part => String(part).padStart(2, '0');
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
};
const bytes = value => value === null || value === undefined ? '' :
  value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(2)} GiB` : `${Math.round(value / 2 ** 20)} MiB`;
const milliseconds = value => value === null || value === undefined ? '' : 
  value >= 0.9995 ? `${value.toPrecision(3)} s` : `${(value * 1e3).toPrecision(3)} ms`;

function section(title, ...content) {
  const parts = content.filter(Boolean);
  return parts.length ? element('section', {'aria-label': title}, element('h2', {}, title), ...parts) : null;
}

function table(heads, rows) {
  const cell = (tag, value, head) => {
    if (value instanceof Node) return element(tag, {class: 'fill'}, value);
    const kind = head.startsWith('#') ? 'number' : head.startsWith('~') ? 'wide' : '';
    return element(tag, {class: kind}, String(value ?? ''));
  };
  const first = element('tr', {}, ...heads.map(head => cell('th', head.replace(/^[#~]/, ''), head)));
  const rest = rows.map(row => element('tr', {}, ...row.map((value, at) => cell('td', value, heads[at]))));
  return element('div', {class: 'scroll'}, element('table', {}, element('thead', {}, first), element('tbody', {}, ...rest)));
}

function folded(title, content) {
  return content ? element('section', {}, element('details', {}, element('summary', {}, title), content)) : null;
}

function stages(run) {
  if (!run.stages?.some(stage => stage.forward !== null)) return null;
  const {stage_seconds: seconds = [], memory_bytes: memory = []} = run.plan.predicted ?? {};
  const busy = stage => stage.forward + stage.backward + stage.update;
  const rows = run.stages.map(stage => {
    const total = PARTS.reduce((sum, [name]) => sum + stage[name], 0) || 1;
    const bar = element('div', {class: 'bar', role: 'img', 'data-rank': stage.rank, 'data-values': JSON.stringify(stage),
      'aria-label': PARTS.map(([name]) => `${name} ${(100 * stage[name] / total).toFixed(0)} %`).join(', ')});
    for (const [name, paint] of PARTS) {
      const part = element('span', {title: `${name} ${milliseconds(stage[name])}`});
      part.style.cssText = `width:${100 * stage[name] / total}%;background:var(--${paint})`;
      bar.append(part);
    }
    return [stage.rank, stage.stage, stage.host, bar, milliseconds(busy(stage)), milliseconds(seconds[stage.stage]),
      `${(100 * (stage.wait + stage.other) / total).toFixed(0)} %`, bytes(stage.memory), bytes(memory[stage.stage])];
  });
  const heads = ['#rank', '#stage', 'host', 'where a minibatch\u2019s time goes', '#busy', '#predicted', '#idle', '#peak memory', '#predicted'];
  return section('Stages', table(heads, rows), legend(PARTS.map(([name, paint]) => [name, `var(--${paint})`])));
}
