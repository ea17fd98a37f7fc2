// The page itself: from the values of the runs to sections. Whatever comes from a run is written as text, never as HTML.

const {runs} = JSON.parse(document.getElementById('values').textContent);
const PAINTS = {
  forward: 'forward', backward: 'backward', 'input grad': 'backward', 'weight grad': 'weight', update: 'update',
  recompute: 'again', receive: 'wait', 'send wait': 'wait', sum: 'wait', data: 'other',
};
const PARTS = [['forward', 'forward'], ['backward', 'backward'], ['update', 'update'], ['wait', 'wait'], ['other', 'other']];

const several = runs.length > 1;
const number = (value, digits = 3) => value === null || value === undefined ? '' : (+value).toFixed(digits);
const time = seconds => {
  const whole = Math.round(seconds), [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const two = part => String(part).padStart(2, '0');
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
};
const bytes = value => value === null || value === undefined ? '' :
  value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(2)} GiB` : `${Math.round(value / 2 ** 20)} MiB`;
const milliseconds = value => value === null || value === undefined ? '' : `${(value * 1e3).toPrecision(3)} ms`;

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

function summary() {
  const plan = run => run.plan ? `${run.plan.sync_mode} ${run.plan.schedule}, ${run.plan.partition.join('+')} layers` : '';
  const rows = runs.map(run => [
    run.id, run.state, `${run.step}/${run.steps}`, number(run.result?.loss ?? run.loss),
    run.result ? Math.round(run.result.samples_per_second) : '', run.result ? time(run.result.seconds) : '', plan(run),
  ]);
  const shown = table(['run', 'state', '#steps', '#loss', '#samples/s', '#time', '~plan'], rows);
  shown.querySelectorAll('tbody td:nth-child(2)').forEach(each => each.classList.add('state', each.textContent));
  return section('Summary', shown);
}

function failure(run) {
  if (!run.failure) return null;
  const {rank, stage, host, cause, step, last_lines: last} = run.failure;
  const place = `rank ${rank} (stage ${stage}, ${host})${step ? `, step ${step}` : ''}: ${cause}`;
  const made = section('What failed first', element('p', {}, place), last.length ? element('pre', {}, last.join('\n')) : null);
  made.classList.add('failure');
  return made;
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

function plan(run) {
  if (!run.plan) return null;
  const {partition, recompute_ratio: ratios, replicas, reason} = run.plan;
  const rows = partition.map((layers, stage) => [stage, layers, replicas[stage], ratios[stage]]);
  const hoped = run.plan.predicted?.step_seconds;
  const text = hoped ? `${reason}; predicted ${milliseconds(hoped)} a step` : reason;
  const shown = table(['#stage', '#layers', '#replicas', '#recompute_ratio'], rows);
  shown.firstChild.classList.add('narrow');
  return section('Plan', element('p', {class: 'soft'}, text), shown);
}

function spans(run) {
  if (!run.timeline) return null;
  const label = ([, kind, begin, duration, stage, minibatch, version]) =>
    `${run.timeline.kinds[kind]}${minibatch === null ? '' : ' ' + minibatch}  ${(duration / 1e3).toPrecision(3)} ms  ` +
    `stage ${stage}${version === null ? '' : `, weights ${version}`}`;
  return section('Timeline of the newest recorded steps', timeline('timeline', run.timeline, PAINTS, label),
    element('p', {class: 'soft'}, 'One line a rank. Wheel or + and \u2212 zoom, drag or arrow keys move, 0 shows all.'));
}

function happened(run) {
  const start = run.events[0]?.time ?? run.started;
  const told = ({time: at, event, attempt, ...rest}) =>
    [`+${time(at - start)}`, attempt ?? '', event, Object.entries(rest).filter(([, value]) => value !== null && value !== '')
      .map(([key, value]) => `${key} ${typeof value === 'object' ? JSON.stringify(value) : value}`).join(', ')];
  return folded(`What happened (${run.events.length} events)`, table(['#time', '#attempt', 'event', '~'], run.events.map(told)));
}

function one(run) {
  const losses = run.losses?.length ? lines('loss', [{name: run.id, points: run.losses}], {unit: 'nats', base: run.baseline}) : null;
  const speed = run.throughput?.length ? lines('throughput', [{name: run.id, points: run.throughput}], {unit: 'samples/s', zero: true}) : null;
  const guess = run.baseline === null || run.baseline === undefined ? null :
    element('figcaption', {}, `dashed: ${number(run.baseline)}, guessing by how frequent each token is`);
  const pair = element('div', {class: 'pair'});
  pair.append(...[section('Loss', losses, losses && guess), section('Throughput', speed)].filter(Boolean));
  return [
    several ? element('h1', {}, run.id) : null, failure(run), several ? null : pair, stages(run), spans(run), plan(run), happened(run),
    folded('The end of the log', run.log?.length ? element('pre', {}, run.log.join('\n')) : null),
    folded('cluster.yml', run.config ? element('pre', {}, run.config) : null),
  ].filter(Boolean);
}

function together() {
  const named = key => runs.filter(run => run[key]?.length).map(run => ({name: run.id, points: run[key]}));
  const losses = named('losses'), speed = named('throughput');
  const pair = element('div', {class: 'pair'});
  pair.append(...[
    section('Loss', losses.length ? lines('loss', losses, {unit: 'nats'}) : null),
    section('Throughput', speed.length ? lines('throughput', speed, {unit: 'samples/s', zero: true}) : null),
  ].filter(Boolean));
  return pair;
}

const page = document.getElementById('report');
page.append(element('h1', {}, several ? `${runs.length} runs` : runs[0].id));
page.append(element('p', {class: 'soft'}, `started ${new Date(runs[0].started * 1e3).toISOString().slice(0, 19).replace('T', ' ')} UTC`));
page.append(summary());
if (several) page.append(together());
for (const run of runs) page.append(...one(run));
