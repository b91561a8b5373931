// Reads a server's metrics as Prometheus does.

import assert from 'node:assert/strict';

import { until } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';

/** A server with a listener of metrics: `{...raptor, status}`, where `status` is that listener's `http://127.0.0.1:PORT`. */
export async function startObserved({ config = {}, ...rest } = {}) {
  const raptor = await startRaptor({ config: { metrics_listen: '127.0.0.1:0', ...config }, ...rest });
  let found;
  await until(async () => (found = /Metrics are at (http:\/\/[\d.:]+)\/metrics/.exec(raptor.stdout())), 'the address of the metrics');
  return { ...raptor, status: found[1] };
}

/** `Map` from a sample's name with its labels, as printed, to its value. Fails on what Prometheus would refuse. */
export async function samples(raptor) {
  const response = await fetch(`${raptor.status}/metrics`);
  assert.equal(response.status, 200);
  assert.match(response.headers.get('content-type'), /^text\/plain; version=0\.0\.4/);
  return parse(await response.text());
}

/** A sample's value; one that is not there counts as 0. */
export async function sample(raptor, name) {
  return (await samples(raptor)).get(name) ?? 0;
}

function parse(text) {
  const found = new Map();
  const families = new Map();
  let family;
  assert.ok(text.endsWith('\n'));
  for (const line of text.slice(0, -1).split('\n')) {
    const type = /^# TYPE ([a-z_:][a-z0-9_:]*) (counter|gauge|histogram)$/.exec(line);
    if (type) {
      family = type[1];
      assert.ok(!families.has(family), `${family} begins twice`);
      families.set(family, type[2]);
      if (type[2] === 'counter') assert.match(family, /_total$/);
      continue;
    }
    if (/^# HELP [a-z_:][a-z0-9_:]* \S/.test(line)) continue;
    const [, name, labels = '', value] = /^([a-z_:][a-z0-9_:]*)(\{(?:[a-z_]+="(?:[^"\\]|\\.)*",?)+\})? (\S+)$/.exec(line) ?? assert.fail(line);
    assert.equal(name.replace(families.get(family) === 'histogram' ? /_(bucket|sum|count)$/ : '', ''), family, line);
    assert.ok(Number.isFinite(Number(value)), line);
    assert.ok(!found.has(name + labels), `${line} stands twice`);
    found.set(name + labels, Number(value));
  }
  return found;
}
