//! A browser of few words: HTTP/1.1 over one connection, forms or JSON up, `Content-Length` bodies down.
//!
//! It never sends a request twice, so that a test may count them: when the connection breaks, the
//! answer is an error, and whether the request took effect is for the test to find out. An answer
//! counts only when its last byte has arrived.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a connection may be silent: far longer than any request takes.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct Client {
    addr: SocketAddr,
    /// Connected by the first request.
    stream: Option<BufReader<TcpStream>>,
}

pub(crate) struct Response {
    pub status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Client {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        Client { addr, stream: None }
    }

    /// Sends a request with these cookies, as they are, and waits for all of the answer.
    pub(crate) fn send(
        &mut self,
        method: &str,
        path: &str,
        cookies: &str,
        form: &[(&str, &str)],
    ) -> io::Result<Response> {
        let fields: Vec<_> =
            form.iter().map(|(k, v)| format!("{}={}", coded(k), coded(v))).collect();
        let headers =
            format!("Cookie: {cookies}\r\nContent-Type: application/x-www-form-urlencoded\r\n");
        self.exchange(method, path, &headers, &fields.join("&"))
    }

    /// The same with a body as it is, and whole lines of headers.
    pub(crate) fn exchange(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> io::Result<Response> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            self.addr,
            body.len(),
        );
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect_timeout(&self.addr, TIMEOUT)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                stream.set_nodelay(true)?;
                none.insert(BufReader::new(stream))
            }
        };
        stream.get_mut().write_all(request.as_bytes())?;
        Response::read(stream)
    }
}

impl Response {
    fn read(stream: &mut impl BufRead) -> io::Result<Self> {
        let status = line(stream)?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = line(stream)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let mut response =
            Response { status: status.ok_or_else(odd)?, headers, body: String::new() };
        let length = response.header("content-length").and_then(|length| length.parse().ok());
        let mut body = vec![0; length.ok_or_else(odd)?];
        stream.read_exact(&mut body)?;
        response.body = String::from_utf8(body).map_err(|_| odd())?;
        Ok(response)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| &**value)
    }

    /// What the answer sets a cookie to; empty if it takes it away.
    pub(crate) fn cookie(&self, name: &str) -> Option<&str> {
        let (pair, attributes) = self.header("set-cookie")?.split_once(';')?;
        let value = pair.strip_prefix(name)?.strip_prefix('=')?;
        Some(if attributes.contains("Expires=Mon, 10 May 1971 ") { "" } else { value })
    }
}

/// A line without its end. One that is cut off is none.
fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    line.strip_suffix("\r\n").map(str::to_owned).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn odd() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer that is not understood")
}

/// Percent-encodes whatever is not plain.
fn coded(text: &str) -> String {
    let code = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(code).collect()
}
