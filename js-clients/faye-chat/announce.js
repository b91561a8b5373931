// An announcement to everybody in the chat: `node announce.js TEXT`.
var faye = require('faye');

var client = new faye.Client(process.env.FAYE_URL || 'http://127.0.0.1:9292/faye');

client.publish('/chat/announcements', { user: 'Node', text: process.argv[2] }).then(function () {
  return client.disconnect();
}).then(function () {
  process.exit();
}, function (error) {
  console.error(error.message);
  process.exit(1);
});
