# The unmodified `pusher` gem: every call, and the class of every error. What was published is read back from cache channels.

require "json"
require "minitest/autorun"
require "pusher"
require "stringio"
require "tempfile"
require "timeout"

ROOT = File.expand_path("../..", __dir__)
APP = JSON.parse(File.read(File.join(ROOT, "compat-tests/support/test-app.json")))

# One server for all tests.
module Raptor
  START_TIMEOUT_SECS = 10

  def self.port
    @port ||= start
  end

  def self.start
    config = Tempfile.new(["raptor", ".toml"])
    config.write("listen = \"127.0.0.1:0\"\n[[apps]]\n", APP.map { |key, value| "#{key} = #{value.to_json}\n" }.join)
    config.close
    binary = ENV.fetch("RAPTOR_BIN", File.join(ROOT, "target/release/raptor"))
    reader, writer = IO.pipe
    pid = Process.spawn({}, binary, "--config", config.path, out: writer, err: File::NULL)
    writer.close
    Minitest.after_run do
      Process.kill("TERM", pid)
      Process.wait(pid)
      config.unlink
    end
    line = Timeout.timeout(START_TIMEOUT_SECS) { reader.gets }
    Thread.new { reader.read }
    Integer(line[%r{\ARaptor is listening on http://127\.0\.0\.1:(\d+)\n\z}, 1])
  end
end

class LibraryTest < Minitest::Test
  def client(**changes)
    Pusher::Client.new(app_id: APP["id"], key: APP["key"], secret: APP["secret"], host: "127.0.0.1", port: Raptor.port, use_tls: false, **changes)
  end

  def vectors(name)
    JSON.parse(File.read(File.join(ROOT, "fixtures/pusher/#{name}.json")))
  end

  def cached(channel)
    client.channel_info(channel, info: "cache")[:cache]["data"]
  end

  def test_trigger_delivers_the_text_that_ruby_wrote
    assert_equal({}, client.trigger("cache-texts", "e", { hello: "wörld", url: "http://x/y" }))
    assert_equal '{"hello":"wörld","url":"http://x/y"}', cached("cache-texts")
    client.trigger("cache-texts", "e", "plain")
    assert_equal "plain", cached("cache-texts")
  end

  def test_trigger_reaches_many_channels
    channels = (1..100).map { |n| "cache-many-#{n}" }
    assert_equal({}, client.trigger(channels, "e", "x"))
    assert_equal %w[x x], [cached(channels.first), cached(channels.last)]
  end

  def test_trigger_with_socket_id_and_info
    answer = client.trigger(%w[a presence-b], "e", "x", socket_id: "1234.1234", info: "user_count,subscription_count")
    assert_equal({ "subscription_count" => 0 }, answer[:channels]["a"])
    assert_equal 0, answer[:channels]["presence-b"]["user_count"]
  end

  def test_trigger_batch
    assert_equal({}, client.trigger_batch([{ channel: "cache-batch", name: "a", data: { n: 1 } }, { channel: "cache-batch", name: "b", data: "last" }]))
    assert_equal "last", cached("cache-batch")
    assert_equal({ batch: [{ "subscription_count" => 0 }, {}] }, client.trigger_batch([{ channel: "a", name: "e", data: "x", info: "subscription_count" }, { channel: "a", name: "e", data: "x" }]))
  end

  def test_channel_objects
    channel = client.channel("cache-object;a=b@c,d.e")
    assert_equal({}, channel.trigger!("e", "x"))
    assert_equal({ occupied: false }, channel.info)
    assert_equal({ occupied: false, subscription_count: 0 }, channel.info(%w[subscription_count]))
    assert_equal [], client.channel("presence-empty").users
  end

  def test_channels
    assert_equal({ channels: {} }, client.channels)
    assert_equal({ channels: {} }, client.channels(filter_by_prefix: "presence-", info: "user_count"))
  end

  def test_terminate_and_deprecated_requests
    assert_equal({}, client.post("/users/12345/terminate_connections"))
    assert_equal false, client.get("/channels/room/stats")[:occupied]
  end

  def test_url_configures_the_client
    by_url = Pusher::Client.from_url("http://#{APP['key']}:#{APP['secret']}@127.0.0.1:#{Raptor.port}/apps/#{APP['id']}")
    assert_equal({}, by_url.trigger("c", "e", "x"))
  end

  def test_signatures_are_those_of_the_vectors
    by_name = vectors("subscriptions")["subscriptions"].to_h { |vector| [vector["name"], "#{APP['key']}:#{vector['signature']}"] }
    assert_equal by_name["V1"], client.authenticate("private-foobar", "1234.1234")[:auth]
    assert_equal by_name["V2"], client.authenticate("presence-foobar", "1234.1234", { user_id: 10, user_info: { name: "Mr. Channels" } })[:auth]
    assert_equal by_name["V7"], client.authenticate_user("1234.1234", { id: "12345" })[:auth]
  end

  def test_webhooks_of_the_vectors_are_valid
    vectors("webhooks")["webhooks"].each do |vector|
      webhook = client.webhook(key: APP["key"], signature: vector["signature"], body: vector["body"])
      assert webhook.valid?
      assert_equal 1, webhook.events.length
      refute client.webhook(key: APP["key"], signature: vector["signature"], body: "#{vector['body']} ").valid?
    end
  end

  def test_errors
    error = assert_raises(Pusher::AuthenticationError) { client(secret: "wrong").trigger("c", "e", "x") }
    assert_match(/\AInvalid signature: you should have sent HmacSHA256Hex\(.*\z/, error.message)
    error = assert_raises(Pusher::AuthenticationError) { client(key: "wrong").channels }
    assert_equal "Unknown auth_key", error.message
    error = assert_raises(Pusher::Error) { client.trigger("c", "e", "x" * 10_241) }
    assert_equal "Payload Too Large > 10KB", error.message
    error = assert_raises(Pusher::Error) { client.channel_users("room") }
    assert_equal "Bad request: Users can only be retrieved for presence channels", error.message
    error = assert_raises(Pusher::Error) { client(app_id: "999").channels }
    assert_equal "404 Not found (/apps/999/channels)", error.message
  end

  def test_the_connection_is_kept_over_success_and_errors
    pusher = client
    5.times do
      pusher.channels
      assert_raises(Pusher::Error) { pusher.channel_users("room") }
      pusher.trigger("c", "e", "x")
    end
    sessions = pusher.sync_http_client.instance_variable_get(:@session_manager).instance_variable_get(:@sess_pool)
    assert_equal 1, sessions.values.sum(&:length)
  end

  # What webhooks/events.test.js has compared with what Raptor sends, in the gem's own checker.
  def test_webhooks_pass_the_checker
    vectors("webhooks")["webhooks"].each do |vector|
      request = Struct.new(:env, :body) do
        def media_type = "application/json"
        def content_type = media_type
      end
      env = { "HTTP_X_PUSHER_KEY" => APP["key"], "HTTP_X_PUSHER_SIGNATURE" => vector["signature"] }
      webhook = client.webhook(request.new(env, StringIO.new(vector["body"])))
      assert webhook.valid?
      assert_equal JSON.parse(vector["body"])["events"], webhook.events.map { |event| event.transform_keys(&:to_s) }
    end
  end
end
