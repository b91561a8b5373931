// Serves the chat page. `FAYE_URL` is the one setting.
var fs = require('fs'),
    http = require('http'),
    path = require('path');

var fayeUrl = process.env.FAYE_URL || 'http://127.0.0.1:9292/faye',
    page = fs.readFileSync(path.join(__dirname, 'chat.html'), 'utf8').split('{{FAYE_URL}}').join(fayeUrl);

var server = http.createServer(function (request, response) {
  if (request.url !== '/') return response.writeHead(404).end();
  response.writeHead(200, { 'Content-Type': 'text/html; charset=utf-8' });
  response.end(page);
});
server.listen(Number(process.env.PORT || 3000), '127.0.0.1', function () {
  console.log('The chat is at http://127.0.0.1:' + server.address().port + '/');
});
