// Works jobs that take as long as they say, and notes each start and end; TERM finishes the job in flight.
const { Worker } = require('node-resque');
const fs = require('fs');
const note = text => fs.appendFileSync(process.env.RAN, `${text} ${process.env.NAME}\n`);
const connection = { pkg: 'ioredis', host: '127.0.0.1', port: +process.env.REDIS_PORT, database: 0, namespace: 'resque', options: {} };
const perform = async (id, millis) => {
  note(`start ${id}`);
  await new Promise(done => setTimeout(done, millis));
  note(`done ${id}`);
};
(async () => {
  const worker = new Worker({ connection, queues: ['slow'], name: process.env.NAME, timeout: 100 }, { SleepJob: { perform } });
  worker.on('error', error => note(`error ${error}`));
  worker.on('failure', (queue, job, error) => note(`failure ${error}`));
  process.on('SIGTERM', async () => { await worker.end(); process.exit(0); });
  await worker.connect();
  await worker.start();
  console.log('ready', worker.name);
})();
