// The Faye server that the chat was written for. `npm run faye`; with Raptor it is not needed.
var http = require('http'),
    faye = require('faye');

var server = http.createServer(),
    bayeux = new faye.NodeAdapter({ mount: '/faye', timeout: 45 });

bayeux.attach(server);
server.listen(Number(process.env.PORT || 9292), '127.0.0.1', function () {
  console.log('Faye is listening on http://127.0.0.1:' + server.address().port + '/faye');
});
