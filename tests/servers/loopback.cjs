// Preloaded into programs that cannot be told where to listen: on loopback, nowhere else.
const { Server } = require("node:net");
const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...rest) {
  const where = typeof port === "object" ? { ...port, host: "127.0.0.1" } : { port, host: "127.0.0.1" };
  const told = rest.filter((one) => typeof one === "function");
  return listen.call(this, where, ...told);
};
