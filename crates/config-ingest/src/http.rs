//! Files on a web server.
