# An announcement to everybody in the chat: `ruby announce.rb TEXT`.
require "json"
require "net/http"

uri = URI.parse(ENV.fetch("FAYE_URL", "http://127.0.0.1:9292/faye"))
message = { channel: "/chat/announcements", data: { user: "Ruby", text: ARGV.fetch(0) } }

reply, = JSON.parse(Net::HTTP.post_form(uri, message: message.to_json).body)
abort reply["error"] unless reply["successful"]
