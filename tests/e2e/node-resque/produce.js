// produce.js JOBS MILLIS: puts so many jobs into the queue.
const { Queue } = require('node-resque');
const connection = { pkg: 'ioredis', host: '127.0.0.1', port: +process.env.REDIS_PORT, database: 0, namespace: 'resque', options: {} };
(async () => {
  const queue = new Queue({ connection }, {});
  await queue.connect();
  for (let i = 0; i < +process.argv[2]; i++) await queue.enqueue('slow', 'SleepJob', [`j${i}`, +process.argv[3]]);
  await queue.end();
  process.exit(0);
})();
