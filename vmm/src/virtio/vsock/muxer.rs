//! All connections, and what is to be sent to the guest about them. Knows
//! nothing of queues: packets go in and out one at a time.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::EventOps;
use vmm_sys_util::epoll::EventSet;

use super::connection::{BUFFER, Connection, FromHost, Phase, Ports};
use super::host::{ConnectRequest, Listener, PendingConnect};
use super::packet::{
    HEADER_LENGTH, HOST_CID, Header, MAX_DATA, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND, STREAM,
};
use crate::memory::IoVecs;
use crate::sandbox::descriptor_share;
use crate::sources::Sources;
use crate::virtio::GuestFaults;

/// Connections and pending connects at a time, where there are descriptors for them.
const MAX_CONNECTIONS: usize = 1023;
/// Ports that the host's side gets.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// How long the guest may take to answer a request, and a program to say what
/// it wants.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the guest may take to finish after both directions have ended.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);

/// Why a packet is not served.
#[derive(Debug, thiserror::Error)]
enum PacketError {
    #[error("A packet of {0} bytes is shorter than its header says")]
    Short(usize),
    #[error("A packet from {0} to {1}")]
    Address(u64, u64),
    #[error("A packet of kind {0}")]
    Kind(u16),
    #[error("A packet with the operation {0}")]
    Operation(u16),
    #[error("More data than was allowed")]
    Credit,
}

/// The next packet for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// A header alone, which was written.
    Header,
    /// A header, and so many bytes, which were written.
    Data(u32),
}

/// The connections of one guest.
pub(super) struct VsockMuxer {
    guest_cid: u64,
    /// Connections and pending connects at a time: each has a descriptor.
    max_connections: usize,
    listener: Listener,
    faults: Arc<GuestFaults>,
    connections: HashMap<Ports, Connection>,
    /// Who waits for which token.
    tokens: HashMap<u32, Ports>,
    pending_connects: HashMap<u32, PendingConnect>,
    next_token: u32,
    first_token: u32,
    next_port: u32,
    /// Headers to be sent, oldest first.
    headers: VecDeque<Header>,
    /// Connections that have data for the guest, in turn.
    readable: VecDeque<Ports>,
}

impl VsockMuxer {
    /// Tokens from `first_token` on are for connections.
    pub(super) fn new(
        guest_cid: u64,
        listener: Listener,
        faults: Arc<GuestFaults>,
        first_token: u32,
    ) -> Self {
        Self {
            guest_cid,
            max_connections: descriptor_share(MAX_CONNECTIONS),
            listener,
            faults,
            connections: HashMap::new(),
            tokens: HashMap::new(),
            pending_connects: HashMap::new(),
            next_token: first_token,
            first_token,
            next_port: FIRST_HOST_PORT,
            headers: VecDeque::new(),
            readable: VecDeque::new(),
        }
    }

    pub(super) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// How many connections there are.
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Ends everything.
    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.tokens.clear();
        self.pending_connects.clear();
        self.headers.clear();
        self.readable.clear();
        self.next_token = self.first_token;
    }

    /// The thread waits for no stream any more, and goes on later.
    pub(super) fn detach(&mut self) {
        for connection in self.connections.values_mut() {
            connection.interest = EventSet::empty();
        }
    }

    /// Has the thread wait for every stream.
    pub(super) fn attach(&mut self, ops: &mut EventOps) {
        let faults = &self.faults;
        self.pending_connects.retain(|&token, pending| {
            let added = ops.add_source(&pending.stream, token);
            if let Err(error) = &added {
                faults.report_host(&format_args!("a connection cannot be waited for: {error}"));
            }
            added.is_ok()
        });
        let ports: Vec<Ports> = self.connections.keys().copied().collect();
        for ports in ports {
            self.update_interest(ports, ops);
        }
    }

    /// How many headers wait for the guest.
    pub(super) fn backlog(&self) -> usize {
        self.headers.len()
    }

    /// Whether anything is there for the guest.
    pub(super) fn has_outgoing(&self) -> bool {
        !self.headers.is_empty() || !self.readable.is_empty()
    }

    /// Whether somebody must be given up in time.
    pub(super) fn has_deadlines(&self) -> bool {
        !self.pending_connects.is_empty()
            || self
                .connections
                .values()
                .any(|connection| connection.deadline.is_some())
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.pending_connects.len() >= self.max_connections
    }

    /// A token that nobody has. There are fewer connections than tokens, so the
    /// search ends.
    fn take_token(&mut self) -> u32 {
        loop {
            let token = self.next_token;
            self.next_token = token.checked_add(1).unwrap_or(self.first_token);
            if !self.tokens.contains_key(&token) && !self.pending_connects.contains_key(&token) {
                return token;
            }
        }
    }

    /// Host programs knock.
    pub(super) fn accept(&mut self, ops: &mut EventOps) {
        while let Some(stream) = self.listener.accept() {
            if self.is_full() {
                self.refuse_another(&"connected from the host");
                continue;
            }
            let token = self.take_token();
            if let Err(error) = ops.add_source(&stream, token) {
                self.faults
                    .report_host(&format_args!("a connection cannot be waited for: {error}"));
                continue;
            }
            let pending = PendingConnect {
                stream,
                deadline: Instant::now() + CONNECT_TIMEOUT,
            };
            self.pending_connects.insert(token, pending);
        }
    }

    fn refuse_another(&self, whence: &dyn std::fmt::Display) {
        self.faults.report_host(&format_args!(
            "{} connections are open: one more is refused ({whence})",
            self.max_connections
        ));
    }

    /// A pending has said something, or a connection can be read or written.
    pub(super) fn ready(&mut self, token: u32, ops: &mut EventOps) {
        if let Some(mut pending) = self.pending_connects.remove(&token) {
            match pending.listen() {
                ConnectRequest::Unfinished => {
                    self.pending_connects.insert(token, pending);
                }
                ConnectRequest::None => drop(ops.remove_source(&pending.stream)),
                ConnectRequest::Port(port) => {
                    let _ = ops.remove_source(&pending.stream);
                    self.request(pending, port);
                }
            }
            return;
        }
        let Some(&ports) = self.tokens.get(&token) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        if connection.flush().is_err() {
            self.abort(ports, ops);
            return;
        }
        if connection.reads_host() && !connection.readable {
            connection.readable = true;
            self.readable.push_back(ports);
        }
        self.after(ports, ops);
    }

    /// Asks the guest to take a connection.
    fn request(&mut self, pending: PendingConnect, guest_port: u32) {
        let mut ports = Ports {
            host: self.next_port,
            guest: guest_port,
        };
        // There are fewer connections than ports, so this ends.
        while self.connections.contains_key(&ports) {
            ports.host = ports.host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
        }
        self.next_port = ports.host.checked_add(1).unwrap_or(FIRST_HOST_PORT);
        let token = self.take_token();
        let mut connection = Connection::new(pending.stream, token, Phase::Requested);
        connection.deadline = Some(Instant::now() + CONNECT_TIMEOUT);
        self.connections.insert(ports, connection);
        self.tokens.insert(token, ports);
        self.send(ports, Operation::Request, 0);
    }

    /// A packet from the guest, header and data, lies in `packet`.
    pub(super) fn incoming(&mut self, packet: &mut IoVecs, ops: &mut EventOps) {
        let mut bytes = [0; HEADER_LENGTH];
        if !packet.read_at(0, &mut bytes) {
            self.faults.report(&PacketError::Short(packet.length()));
            return;
        }
        let header = Header::from_bytes(&bytes);
        if header.source_cid != self.guest_cid || header.target_cid != HOST_CID {
            // Nobody to answer to.
            self.faults
                .report(&PacketError::Address(header.source_cid, header.target_cid));
            return;
        }
        let ports = Ports {
            host: header.target_port,
            guest: header.source_port,
        };
        let length = header.length as usize;
        let fault = if header.kind != STREAM {
            Some(PacketError::Kind(header.kind))
        } else if length > MAX_DATA || length > packet.length() - HEADER_LENGTH {
            Some(PacketError::Short(packet.length()))
        } else {
            None
        };
        let operation = Operation::from_number(header.operation);
        let (operation, None) = (operation, &fault) else {
            self.refuse(ports, operation, fault, ops);
            return;
        };
        let Some(operation) = operation else {
            let fault = PacketError::Operation(header.operation);
            self.refuse(ports, None, Some(fault), ops);
            return;
        };
        match (operation, self.connections.get_mut(&ports)) {
            (Operation::Request, None) => self.open(ports, &header),
            // The guest is done, and the host has yet to take what it sent.
            (Operation::Reset, Some(connection)) if connection.is_draining() => {
                connection.guest_shutdown(true, true);
            }
            (Operation::Reset, _) => {
                self.remove(ports, ops);
                return;
            }
            (_, None) | (Operation::Request, Some(_)) => {
                self.refuse(ports, Some(operation), None, ops);
            }
            (operation, Some(connection)) => {
                connection.update_credit(header.buffer, header.forwarded);
                if !Self::serve(connection, operation, &header, packet, &self.faults) {
                    self.abort(ports, ops);
                    return;
                }
                if operation == Operation::CreditRequest {
                    self.send(ports, Operation::CreditUpdate, 0);
                }
            }
        }
        self.after(ports, ops);
    }

    /// Serves a packet of a connection that exists; false if it cannot go on.
    fn serve(
        connection: &mut Connection,
        operation: Operation,
        header: &Header,
        packet: &mut IoVecs,
        faults: &GuestFaults,
    ) -> bool {
        match operation {
            Operation::Response if connection.phase == Phase::Requested => {
                connection.phase = Phase::Open;
                connection.deadline = None;
                let greeting = format!("OK {}\n", header.target_port);
                connection.greet(greeting.as_bytes()).is_ok()
            }
            Operation::Data => {
                let length = header.length as usize;
                if !connection.may_send(length) {
                    faults.report(&PacketError::Credit);
                    return false;
                }
                connection.write_host(packet, length).is_ok()
            }
            Operation::Shutdown if connection.phase == Phase::Open => {
                connection.guest_shutdown(
                    header.flags & SHUTDOWN_RECEIVE != 0,
                    header.flags & SHUTDOWN_SEND != 0,
                );
                true
            }
            Operation::CreditUpdate | Operation::CreditRequest => true,
            _ => false,
        }
    }

    /// The guest opens a connection.
    fn open(&mut self, ports: Ports, header: &Header) {
        let stream = if self.is_full() {
            self.refuse_another(&"connected from the guest");
            Err(io::ErrorKind::OutOfMemory.into())
        } else {
            self.listener.connect(ports.host)
        };
        match stream {
            Ok(stream) => {
                let token = self.take_token();
                let mut connection = Connection::new(stream, token, Phase::Open);
                connection.update_credit(header.buffer, header.forwarded);
                self.connections.insert(ports, connection);
                self.tokens.insert(token, ports);
                self.send(ports, Operation::Response, 0);
            }
            Err(error) => {
                log::debug!("port {} of the host: {error}", ports.host);
                self.send(ports, Operation::Reset, 0);
            }
        }
    }

    /// Answers a packet that makes no sense, or not now, by ending the
    /// connection that it names.
    fn refuse(
        &mut self,
        ports: Ports,
        operation: Option<Operation>,
        fault: Option<PacketError>,
        ops: &mut EventOps,
    ) {
        if let Some(fault) = fault {
            self.faults.report(&fault);
        }
        self.remove(ports, ops);
        // A reset is never answered, or two sides could go on for ever.
        if operation != Some(Operation::Reset) {
            self.send(ports, Operation::Reset, 0);
        }
    }

    /// What follows from a change of a connection.
    fn after(&mut self, ports: Ports, ops: &mut EventOps) {
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        if connection.is_over() {
            self.abort(ports, ops);
            return;
        }
        // Waiting for credit that has come.
        if connection.readable && connection.credit() > 0 && !self.readable.contains(&ports) {
            self.readable.push_back(ports);
        }
        if connection.owes_credit_update() {
            self.send(ports, Operation::CreditUpdate, 0);
        }
        self.update_interest(ports, ops);
    }

    /// Waits for what the connection wants. One that cannot be waited for is
    /// ended: the others are not to suffer for it.
    fn update_interest(&mut self, ports: Ports, ops: &mut EventOps) {
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        let wanted = connection.wanted();
        let before = std::mem::replace(&mut connection.interest, wanted);
        // A stream whose other end is gone is always ready, so it must not be
        // waited for without a wish.
        let updated = match (before.is_empty(), wanted.is_empty()) {
            (true, false) => ops
                .add_source(connection, connection.token)
                .and_then(|()| ops.modify_source(connection, wanted, connection.token)),
            (false, true) => ops.remove_source(connection),
            (false, false) if before != wanted => {
                ops.modify_source(connection, wanted, connection.token)
            }
            _ => Ok(()),
        };
        if let Err(error) = updated {
            self.faults
                .report_host(&format_args!("a connection cannot be waited for: {error}"));
            self.abort(ports, ops);
        }
    }

    /// Ends a connection and tells the guest.
    fn abort(&mut self, ports: Ports, ops: &mut EventOps) {
        self.remove(ports, ops);
        self.send(ports, Operation::Reset, 0);
    }

    fn remove(&mut self, ports: Ports, ops: &mut EventOps) {
        let Some(connection) = self.connections.remove(&ports) else {
            return;
        };
        self.tokens.remove(&connection.token);
        if !connection.interest.is_empty() {
            let _ = ops.remove_source(&connection);
        }
        self.readable.retain(|other| *other != ports);
        // Nothing that was to be said about it is of interest any more.
        self.headers
            .retain(|header| (header.source_port, header.target_port) != (ports.host, ports.guest));
    }

    fn send(&mut self, ports: Ports, operation: Operation, flags: u32) {
        self.headers.push_back(Header {
            operation: operation.number(),
            flags,
            ..self.header(ports)
        });
    }

    fn header(&self, ports: Ports) -> Header {
        Header {
            source_cid: HOST_CID,
            target_cid: self.guest_cid,
            source_port: ports.host,
            target_port: ports.guest,
            kind: STREAM,
            ..Header::default()
        }
    }

    /// Fills `packet`, empty buffers of the guest's, with the next packet. None
    /// if there is nothing to send.
    pub(super) fn outgoing(&mut self, packet: &mut IoVecs, ops: &mut EventOps) -> Option<Outgoing> {
        loop {
            if let Some(header) = self.headers.pop_front() {
                self.write_header(header, packet);
                return Some(Outgoing::Header);
            }
            let ports = self.readable.pop_front()?;
            if let Some(length) = self.read(ports, packet) {
                let header = Header {
                    length,
                    operation: Operation::Data.number(),
                    ..self.header(ports)
                };
                self.write_header(header, packet);
                self.readable.push_back(ports);
                return Some(Outgoing::Data(length));
            }
            self.update_interest(ports, ops);
        }
    }

    /// Reads data of a connection into the guest's buffers; says how much.
    fn read(&mut self, ports: Ports, packet: &mut IoVecs) -> Option<u32> {
        let connection = self.connections.get_mut(&ports)?;
        if !connection.reads_host() {
            connection.readable = false;
            return None;
        }
        if connection.credit() == 0 {
            // It stays readable, and its turn comes with the credit.
            if !connection.credit_requested {
                connection.credit_requested = true;
                self.send(ports, Operation::CreditRequest, 0);
            }
            return None;
        }
        match connection.read_host(packet) {
            Ok(FromHost::Data(length)) => return Some(length),
            Ok(FromHost::Nothing) => connection.readable = false,
            Ok(FromHost::End) => {
                connection.readable = false;
                connection.host_ended = true;
                let flags = if connection.host_is_gone() {
                    connection.deadline = Some(Instant::now() + SHUTDOWN_TIMEOUT);
                    SHUTDOWN_BOTH
                } else {
                    SHUTDOWN_SEND
                };
                self.send(ports, Operation::Shutdown, flags);
            }
            Err(error) => {
                log::debug!("a host program's connection breaks: {error}");
                connection.readable = false;
                connection.host_ended = true;
                connection.deadline = Some(Instant::now() + SHUTDOWN_TIMEOUT);
                self.send(ports, Operation::Shutdown, SHUTDOWN_BOTH);
            }
        }
        None
    }

    /// Connections that could not be served to the end wait no more for the
    /// host, until the guest has given buffers.
    pub(super) fn hold_readable(&mut self, ops: &mut EventOps) {
        for ports in self.readable.clone() {
            self.update_interest(ports, ops);
        }
    }

    fn write_header(&mut self, mut header: Header, packet: &IoVecs) {
        let ports = Ports {
            host: header.source_port,
            guest: header.target_port,
        };
        if let Some(connection) = self.connections.get_mut(&ports) {
            header.buffer = BUFFER;
            header.forwarded = connection.tell_forwarded();
        }
        // There is room: the caller has seen to it.
        let _ = packet.write_at(0, &header.to_bytes());
    }

    /// Gives up whoever has had time enough.
    pub(super) fn expire(&mut self, now: Instant, ops: &mut EventOps) {
        self.pending_connects.retain(|_, pending| {
            let stays = pending.deadline > now;
            if !stays {
                // It was waited for.
                let _ = ops.remove_source(&pending.stream);
            }
            stays
        });
        let late: Vec<Ports> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.deadline.is_some_and(|at| at <= now))
            .map(|(&ports, _)| ports)
            .collect();
        for ports in late {
            self.abort(ports, ops);
        }
    }
}
