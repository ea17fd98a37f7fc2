// The page of a sweep: which trial did what, what it cost, and the numbers of each.

const {sweep} = JSON.parse(document.getElementById('values').textContent);
const MIB = 2 ** 20;
const ended = sweep.trials.filter(trial => trial.state === 'succeeded' && trial.samples_per_second && trial.peak_memory_bytes);
const isTold = trial => Boolean(trial.run || trial.cause);
const anchor = trial => `trial-${trial.trial}`;
const percent = share => share === null ? '' : `${(100 * share).toFixed(0)} %`;
const signed = share => share === null ? '' : `${share >= 0 ? '+' : '\u2212'}${Math.abs(100 * share).toFixed(1)} %`;
const rate = value => value === null ? '' : value >= 100 ? String(Math.round(value)) : value.toPrecision(3);
const marks = trial => `${trial.pareto ? '*' : ''}${trial.planner ? 'P' : ''}`;

function link(trial) {
  return element('a', {href: `#${anchor(trial)}`}, `${trial.trial}`);
}

function trials() {
  const rows = sweep.trials.map(trial => [
    trial.trial, ...trial.values, trial.state, rate(trial.samples_per_second), signed(trial.change), milliseconds(trial.step_seconds),
    milliseconds(trial.predicted_step_seconds), bytes(trial.peak_memory_bytes), percent(trial.idle_share), number(trial.loss), marks(trial),
  ]);
  const heads = ['#trial', ...sweep.keys, 'state', '#samples/s', '#change', '#step', '#predicted', '#peak memory', '#idle', '#loss', ''];
  const shown = table(heads, rows);
  [...shown.querySelectorAll('tbody tr')].forEach((row, at) => {
    if (isTold(sweep.trials[at])) row.firstChild.replaceChildren(link(sweep.trials[at]));
    row.children[1 + sweep.keys.length].classList.add('state', sweep.trials[at].state);
    if (sweep.trials[at].planner) row.classList.add('chosen');
  });
  const legend = '* no other trial is better in both throughput and peak memory (of the worst stage); P the planner\u2019s choice; '
    + 'change: against the first trial';
  return section('Trials', shown, element('p', {class: 'soft'}, legend), sweep.planner ? element('p', {}, sweep.planner) : null);
}

function tradeoff() {
  if (!ended.length) return null;
  const points = ended.map(trial => ({
    name: `trial ${trial.trial}: ${trial.label}${trial.planner ? ' (planner)' : ''}`, x: trial.peak_memory_bytes / MIB,
    y: trial.samples_per_second, front: trial.pareto, chosen: trial.planner, target: anchor(trial),
  }));
  return section('Throughput and memory', scatter('trade-off', points, {x: 'MiB peak memory of the worst stage', y: 'samples/s'}),
    legend([['Pareto front', 'var(--s0)'], ['others', 'var(--other)'], ['planner\u2019s choice (square)', 'var(--s1)']]));
}

function curves() {
  if (!sweep.curves) return null;
  const {along, names, time: seconds, memory} = sweep.curves;
  const scaled = (every, factor) => every.map(({name, points}) => ({name: name || along, points: points.map(([x, y]) => [x, y * factor])}));
  const pair = element('div', {class: 'pair'});
  pair.append(
    section(`Step time over ${along}`, lines('step time', scaled(seconds, 1e3), {unit: 'ms', along, names})),
    section(`Peak memory over ${along}`, lines('peak memory', scaled(memory, 1 / MIB), {unit: 'MiB', along, names})),
  );
  return pair;
}

function losses() {
  const known = sweep.trials.filter(trial => trial.losses?.length).slice(0, sweep.drawn);
  if (!known.length) return null;
  return section('Loss', lines('loss', known.map(trial => ({name: `${trial.trial}: ${trial.label}`, points: trial.losses})), {unit: 'nats'}));
}

function one(trial) {
  const told = [trial.cause, trial.run ? `run ${trial.run}` : 'it was not run', trial.reused ? `of sweep ${trial.reused}` : '', trial.folder];
  const made = element('section', {id: anchor(trial), 'aria-label': `trial ${trial.trial}`},
    element('h2', {}, `Trial ${trial.trial}: ${trial.label} ${marks(trial)}`),
    element('p', {}, `${trial.state}. ${told.filter(Boolean).join('; ')}`),
    element('pre', {}, trial.command));
  const inner = trial.stages ? stages(trial) : null;
  if (inner) made.append(...[...inner.children].slice(1));
  return made;
}

const page = document.getElementById('report');
const when = new Date(sweep.created * 1e3).toISOString().slice(0, 19).replace('T', ' ');
page.append(element('h1', {}, `sweep ${sweep.id}`));
page.append(element('p', {class: 'soft'}, `typed ${when} UTC; ${sweep.state}${sweep.why ? `: ${sweep.why}` : ''}; `
  + `${sweep.done} of ${sweep.trials.length} trials have ended`));
page.append(...[sweep.command ? element('p', {class: 'soft'}, sweep.command) : null, trials(), tradeoff(), curves(), losses(),
  ...sweep.trials.filter(isTold).map(one), folded('cluster.yml', sweep.config ? element('pre', {}, sweep.config) : null)].filter(Boolean));
