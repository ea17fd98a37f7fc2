// The page itself: from the values of the runs to sections. 

const {runs} = JSON.parse(document.getElementById('values').textContent);
const several = runs.length > 1;

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
