# The unmodified Ruby client of Faye over both of its transports, and publishing from Ruby without one.

require "faye"
require "fiber"
require "json"
require "minitest/autorun"
require "net/http"
require "tempfile"
require "timeout"

ROOT = File.expand_path("../..", __dir__)
APP = JSON.parse(File.read(File.join(ROOT, "compat-tests/support/test-app.json")))
HOLD_SECS = 2
RETRY_SECS = 0.2

# One server for all tests.
module Server
  START_TIMEOUT_SECS = 10

  def self.port
    @port ||= start(0)
  end

  def self.url
    "http://127.0.0.1:#{port}/faye"
  end

  def self.restart
    Process.kill("TERM", @pid)
    Process.wait(@pid)
    start(port)
  end

  def self.start(port)
    command, pattern = ENV["BAYEUX_SERVER"] == "faye" ? [faye(port), /\A(\d+)\n\z/] : [raptor(port), %r{\ARaptor is listening on http://127\.0\.0\.1:(\d+)\n\z}]
    reader, writer = IO.pipe
    @pid = Process.spawn({}, *command, out: writer, err: File::NULL)
    writer.close
    line = Timeout.timeout(START_TIMEOUT_SECS) { reader.gets }
    Thread.new { reader.read }
    Integer(line[pattern, 1])
  end

  def self.raptor(port)
    @config ||= Tempfile.new(["raptor", ".toml"]).tap do |file|
      file.write("[[apps]]\n", APP.map { |key, value| "#{key} = #{value.to_json}\n" }.join)
      file.write("[apps.bayeux]\nmounts = [\"/faye\"]\nclient_publish = \"open\"\nhold_secs = #{HOLD_SECS}\n")
      file.close
    end
    [ENV.fetch("RAPTOR_BIN", File.join(ROOT, "target/release/raptor")), "--config", @config.path, "--listen", "127.0.0.1:#{port}"]
  end

  def self.faye(port)
    ["node", File.join(ROOT, "compat-tests/bayeux/support/faye-server.js"), port.to_s, HOLD_SECS.to_s]
  end

  Minitest.after_run do
    if @pid
      Process.kill("TERM", @pid)
      Process.wait(@pid)
    end
  end
end

class ClientTest < Minitest::Test
  SOON_SECS = 5
  RECONNECT_SECS = 15 # shutdown advice spreads clients over 5 s

  # Notes what the client was sent.
  class Observer
    attr_reader :seen, :sent

    def initialize
      @seen = []
      @sent = []
    end

    def incoming(message, callback)
      @seen << message.dup
      callback.call(message)
    end

    def outgoing(message, callback)
      @sent << message.dup
      callback.call(message)
    end

    def successes(channel)
      @seen.count { |message| message["channel"] == channel && message["successful"] }
    end
  end

  # One test for each transport, in a fiber of EventMachine's loop.
  def self.scenario(title, &steps)
    %w[websocket long-polling].each do |transport|
      define_method("test_#{title} over #{transport}".tr(" ", "_")) do
        @transport = transport
        Server.port
        failure = nil
        EM.run do
          Fiber.new do
            instance_exec(&steps)
          rescue Exception => error # assertions included: they must leave the loop first
            failure = error
          ensure
            EM.stop
          end.resume
        end
        raise failure if failure
      end
    end
  end

  def client
    created = Faye::Client.new(Server.url, retry: RETRY_SECS)
    created.disable("websocket") if @transport == "long-polling"
    observer = Observer.new
    created.add_extension(observer)
    [created, observer]
  end

  def sleep_for(secs)
    fiber = Fiber.current
    EM.add_timer(secs) { fiber.resume }
    Fiber.yield
  end

  def eventually(what, within = SOON_SECS)
    ends = Process.clock_gettime(Process::CLOCK_MONOTONIC) + within
    until yield
      flunk("not within #{within} s: #{what}") if Process.clock_gettime(Process::CLOCK_MONOTONIC) > ends
      sleep_for(0.01)
    end
  end

  # nil, or the error.
  def outcome(deferrable)
    done = false
    error = nil
    deferrable.callback { done = true }
    deferrable.errback { |reason| error = reason; done = true }
    eventually("a reply") { done }
    error
  end

  def new_room
    @@rooms = (@@rooms ||= 0) + 1
    "/ruby-#{@@rooms}"
  end

  # In a thread: the loop must go on.
  def post(message)
    reply = nil
    Thread.new { reply = JSON.parse(Net::HTTP.post_form(URI(Server.url), message: JSON.generate(message)).body) }
    eventually("a reply to a plain post") { reply }
    reply
  end

  scenario "connects by its transport, hears itself, unsubscribes and disconnects" do
    faye, observer = client
    room = new_room
    got = []
    subscription = faye.subscribe("#{room}/*") { |message| got << message }
    assert_nil outcome(subscription)
    assert_nil outcome(faye.publish("#{room}/a", "hello" => "wörld"))
    eventually("the message") { got == [{ "hello" => "wörld" }] }
    eventually("a connect by #{@transport}", HOLD_SECS + SOON_SECS) { observer.sent.any? { |message| message["connectionType"] == @transport } }

    subscription.cancel
    eventually("unsubscribed") { observer.successes("/meta/unsubscribe") == 1 }
    assert_nil outcome(faye.publish("#{room}/a", 2))
    sleep_for(0.3)
    assert_equal 1, got.size

    client_id = observer.seen.find { |message| message["channel"] == "/meta/handshake" }["clientId"]
    faye.disconnect
    connect = { channel: "/meta/connect", clientId: client_id, connectionType: "long-polling", advice: { timeout: 0 } }
    eventually("the session is gone") { post(connect)[0]["error"] == "401:#{client_id}:Unknown client" }
  end

  scenario "patterns match as they should" do
    faye, = client
    room = new_room
    got = Hash.new { |hash, key| hash[key] = [] }
    ["", "/*", "/**"].each { |suffix| assert_nil outcome(faye.subscribe(room + suffix) { |message| got[suffix] << message }) }
    ["", "/a", "/a/b"].each { |suffix| assert_nil outcome(faye.publish(room + suffix, suffix)) }
    eventually("all") { got["/**"].size == 2 }
    assert_equal({ "" => [""], "/*" => ["/a"], "/**" => ["/a", "/a/b"] }, got)
  end

  scenario "a refused subscription tells why" do
    faye, = client
    [["/meta/x", 403, "Forbidden channel"], ["/a b", 405, "Invalid channel"], ["/service/x", 403, "Forbidden channel"]].each do |channel, code, text|
      error = outcome(faye.subscribe(channel) {})
      assert_equal [code, [channel], text], [error.code, error.params, error.message]
    end
  end

  scenario "a form posted by Net HTTP is heard, 200 of them in order" do
    faye, = client
    room = new_room
    got = []
    assert_nil outcome(faye.subscribe(room) { |message| got << message })
    assert_equal [{ "channel" => room, "successful" => true }], post(channel: room, data: { "text" => "hi" })
    post((0...200).map { |n| { channel: room, data: n } })
    eventually("all") { got.size == 201 }
    assert_equal [{ "text" => "hi" }, *0...200], got
  end

  scenario "idle cycles go on" do
    faye, observer = client
    room = new_room
    got = []
    assert_nil outcome(faye.subscribe(room) { |message| got << message })
    before = observer.successes("/meta/connect")
    sleep_for(3.3 * HOLD_SECS)
    assert_includes 2..4, observer.successes("/meta/connect") - before
    post(channel: room, data: "awake")
    eventually("the message") { got == ["awake"] }
  end

  scenario "a restarted server gets it back" do
    faye, observer = client
    room = new_room
    got = []
    assert_nil outcome(faye.subscribe(room) { |message| got << message })
    restarted = Thread.new { Server.restart }
    eventually("the restart", RECONNECT_SECS) { !restarted.alive? }
    eventually("subscribed again", RECONNECT_SECS) { observer.successes("/meta/subscribe") == 2 }
    post(channel: room, data: "again")
    eventually("the message") { got == ["again"] }
  end
end
