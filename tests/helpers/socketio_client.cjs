// A Socket.IO client, as a program: it prints each event as a line of JSON, and emits what it reads.
const { io } = require("socket.io-client")

const print = (...items) => console.log(JSON.stringify(items, (key, value) =>
  value?.type === "Buffer" ? { bytes: Buffer.from(value.data).toString("hex") } : value))

const socket = io(process.argv[2], { transports: ["websocket"], auth: JSON.parse(process.argv[3]) })
socket.on("connect", () => print("connect", socket.id))
socket.on("disconnect", () => print("disconnect", null))
socket.onAny((event, data, reply) => {
  if (event === "ask") reply(data instanceof Buffer ? data.reverse() : `js: ${data}`)
  else print(event, data)
})

require("readline").createInterface({ input: process.stdin })
  .on("line", line => {
    const [event, ...items] = JSON.parse(line)
    socket.emit(event, ...items, reply => print("reply", reply ?? null))
  })
  .on("close", () => process.exit())
