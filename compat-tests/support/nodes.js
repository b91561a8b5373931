// Several nodes that share a Redis, behind a load balancer that sends everybody anywhere: to clients, one server.

import { BALANCERS } from './balancers.js';
import { startRaptor } from './raptor.js';
import { startRedis } from './redis.js';

/**
 * @param {object} [options] `config`: of each node, as for `startRaptor`; `count`: of nodes; `balancer`: a key of `BALANCERS`; `connectionsMax`: of it
 * @returns {Promise<Nodes>}
 *
 * @typedef {object} Nodes
 * @property {number} port of the load balancer
 * @property {string} url of the load balancer
 * @property {import('./raptor.js').Raptor[]} nodes those that run now
 * @property {object} redis
 * @property {(nth: number, signal?: string) => Promise<void>} restartNode on the same port
 * @property {(signal?: string) => Promise<Nodes>} restart of all of them at once
 */
export async function startNodes({ config = {}, count = 3, balancer = 'nginx', connectionsMax = undefined } = {}) {
  const redis = await startRedis();
  const start = () => startRaptor({ config: { ...config, redis: { url: redis.url, ...config.redis } } });
  const nodes = await Promise.all(Array.from({ length: count }, start));
  const { port, url } = await BALANCERS[balancer](nodes, { connectionsMax });

  async function restartNode(nth, signal) {
    nodes[nth] = await nodes[nth].restart(signal);
  }
  async function restart(signal) {
    await Promise.all(nodes.map((_, nth) => restartNode(nth, signal)));
    return together;
  }
  const together = { port, url, nodes, redis, restartNode, restart };
  return together;
}
