use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::thread;

use super::*;

/// What a module does with a request.
enum Answer {
    Whole(Vec<u8>),
    /// A byte every few milliseconds.
    Trickled(Vec<u8>),
    Silence,
    Hangup,
}

/// Runs `test` against a module that answers as `answer` says: it is given the number of the connection,
/// from 0, and the request.
fn with_module(
    keys: &str,
    answer: impl Fn(usize, &[u8]) -> Answer + Sync,
    test: impl FnOnce(&mut Remote),
) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = format!("address = \"127.0.0.1\"\nport = {port}\n{keys}");
    let mut remote = Remote::new(&toml::from_str(&config).unwrap()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let stop = AtomicBool::new(false);
    struct Stops<'a>(&'a AtomicBool);
    impl Drop for Stops<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|threads| {
        threads.spawn(|| {
            let mut connections = Vec::<(TcpStream, Vec<u8>)>::new();
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
                if let Ok((socket, _)) = listener.accept() {
                    socket.set_nonblocking(true).unwrap();
                    connections.push((socket, Vec::new()));
                }
                for (nth, (socket, held)) in connections.iter_mut().enumerate() {
                    let mut bytes = [0; 512];
                    if let Ok(count) = socket.read(&mut bytes) {
                        held.extend_from_slice(&bytes[..count]);
                    }
                    if held.len() < 6 || held.len() < 6 + usize::from(held[5]) {
                        continue;
                    }
                    let request: Vec<u8> = held.drain(..6 + usize::from(held[5])).collect();
                    match answer(nth, &request) {
                        // The client may have gone meanwhile.
                        Answer::Whole(bytes) => drop(socket.write_all(&bytes)),
                        Answer::Trickled(bytes) => {
                            for byte in bytes {
                                let _ = socket.write_all(&[byte]);
                                thread::sleep(Duration::from_millis(20));
                            }
                        }
                        Answer::Silence => {}
                        Answer::Hangup => drop(socket.shutdown(std::net::Shutdown::Both)),
                    }
                }
            }
        });
        let _stops = Stops(&stop);
        test(&mut remote);
        drop(remote);
    });
}

/// The answer to `request` with this unit and block.
fn reply(request: &[u8], unit: u8, block: &[u8]) -> Vec<u8> {
    let length = (block.len() + 1) as u8;
    [&request[..2], &[0, 0, 0, length, unit], block].concat()
}

/// A module with two inputs, of which the second is on, as it should be.
fn good(request: &[u8]) -> Vec<u8> {
    match request[7] {
        2 => reply(request, request[6], &[2, 1, 0b10]),
        5 | 6 | 15 => reply(request, request[6], &request[7..12]),
        function => reply(request, request[6], &[function | 0x80, 1]),
    }
}

/// A turn long after every pause: an hour after the one before.
fn turn(remote: &mut Remote, outputs: u32) -> Result<Inputs, String> {
    static TURNS: AtomicU32 = AtomicU32::new(0);
    let hours = Duration::from_secs(3600) * (TURNS.fetch_add(1, Ordering::Relaxed) + 1);
    remote.exchange(outputs, clock() + hours).map_err(|error| format!("{error:#}"))
}

const TWO_INPUTS: &str = "outputs = 2\ninputs = 2\ntimeout_ms = 400";

/// The requests' layout of MODBUS Application Protocol V1.1b3, chapters 6.2, 6.4, 6.6 and 6.11, by hand.
#[test]
fn a_turn_is_what_the_standard_says() {
    let keys = "unit = 9\noutputs_at = 16\noutputs = 10\ninputs_at = 300\ninputs = 9\n\
                encoder_at = 512\nkeep_alive_at = 258\nsafe_on = [3]\ntimeout_ms = 400";
    let heard = std::sync::Mutex::new(Vec::new());
    let module = |_: usize, request: &[u8]| {
        heard.lock().unwrap().push(request.to_vec());
        Answer::Whole(match request[7] {
            2 => reply(request, 9, &[2, 2, 0b1000_0001, 0xFF]),
            4 => reply(request, 9, &[4, 4, 0x12, 0x34, 0x56, 0x78]),
            _ => good(request),
        })
    };
    with_module(keys, module, |remote| {
        for _ in 0..2 {
            let inputs = turn(remote, 0xFFFF_FE01).unwrap();
            // Bits beyond the ninth are padding.
            assert_eq!(inputs, Inputs { bits: 0b1_1000_0001, encoder: Some(0x1234_5678) });
        }
    });
    let heard = heard.into_inner().unwrap();
    let wants: [&[u8]; 4] = [
        &[0, 1, 0, 0, 0, 9, 9, 15, 0, 16, 0, 10, 2, 0x01, 0x02],
        &[0, 2, 0, 0, 0, 6, 9, 6, 1, 2, 0, 1],
        &[0, 3, 0, 0, 0, 6, 9, 2, 1, 44, 0, 9],
        &[0, 4, 0, 0, 0, 6, 9, 4, 2, 0, 0, 2],
    ];
    assert_eq!(heard[..4], wants);
    // Again without a change, the keep-alive counting; at last the safe state.
    assert_eq!(heard[4][2..], wants[0][2..]);
    assert_eq!(heard[5], [0, 6, 0, 0, 0, 6, 9, 6, 1, 2, 0, 2]);
    assert_eq!(heard[8], [0, 9, 0, 0, 0, 9, 9, 15, 0, 16, 0, 10, 2, 0b1000, 0]);
    assert_eq!(heard.len(), 9);
}

#[test]
fn the_low_word_may_come_first() {
    let keys = "encoder_at = 0\nencoder_words = \"low_first\"\ntimeout_ms = 400";
    let module = |_: usize, request: &[u8]| {
        Answer::Whole(reply(request, 1, &[4, 4, 0x12, 0x34, 0x56, 0x78]))
    };
    with_module(keys, module, |remote| {
        let read = Inputs { bits: 0, encoder: Some(0x5678_1234) };
        assert_eq!(turn(remote, 0).unwrap(), read);
    });
}

/// After each of these nothing on that connection is believed; the next turn is on a new one.
#[test]
fn what_is_no_whole_answer_costs_the_connection() {
    type Wrong = fn(&[u8]) -> Answer;
    struct Case(&'static str, Wrong);
    fn changed(request: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Answer {
        let mut frame = good(request);
        change(&mut frame);
        Answer::Whole(frame)
    }
    let cases = [
        Case("transaction", |request| changed(request, |frame| frame[1] ^= 1)),
        Case("not Modbus", |request| changed(request, |frame| frame[2] = 1)),
        Case("unit 2 answers instead of 1", |request| changed(request, |frame| frame[6] = 2)),
        Case("length of 2 bytes", |request| changed(request, |frame| frame[5] = 2)),
        Case("length of 255 bytes", |request| changed(request, |frame| frame[5] = 255)),
        Case("another length", |request| Answer::Whole(reply(request, 1, &[2, 2, 0b10, 0]))),
        Case("another length", |request| Answer::Whole(reply(request, 1, &[2, 2, 0b10]))),
        Case("function 3", |request| Answer::Whole(reply(request, 1, &[3, 1, 0b10]))),
        Case("not answered in time", |_| Answer::Silence),
        Case("not answered in time", |request| {
            changed(request, |frame| frame.truncate(frame.len() - 1))
        }),
        Case("not answered in time", |request| Answer::Trickled(good(request).repeat(4))),
        Case("closed the connection", |_| Answer::Hangup),
    ];
    for Case(says, wrong) in cases {
        let module = move |nth: usize, request: &[u8]| {
            if nth == 0 && request[7] == 2 { wrong(request) } else { Answer::Whole(good(request)) }
        };
        // The trickled one takes 20 ms a byte: 200 ms for the whole.
        with_module("outputs = 2\ninputs = 2\ntimeout_ms = 120", module, |remote| {
            let error = turn(remote, 3).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
            assert!(error.contains("io.inputs_at"), "{says}: {error}");
            assert!(remote.link.is_none(), "{says}");
            let soon = format!("{:#}", remote.exchange(3, clock()).unwrap_err());
            assert!(soon.contains("tried again soon"), "{says}: {soon}");
            // However slow this machine is, it answers in the end.
            let again = (0..20).find_map(|_| turn(remote, 3).ok());
            assert_eq!(again, Some(Inputs { bits: 0b10, encoder: None }), "{says}");
        });
    }
}

#[test]
fn a_write_must_be_repeated() {
    let module = |_: usize, request: &[u8]| {
        let mut frame = good(request);
        if request[7] == 15 {
            frame[11] ^= 1;
        }
        Answer::Whole(frame)
    };
    with_module(TWO_INPUTS, module, |remote| {
        let error = turn(remote, 3).unwrap_err();
        assert!(error.contains("io.outputs_at: the answer repeats something else"), "{error}");
        assert!(remote.link.is_none());
    });
}

#[test]
fn a_refusal_leaves_the_connection_in_step() {
    let refusals = AtomicU8::new(0);
    let module = |nth: usize, request: &[u8]| {
        assert_eq!(nth, 0, "no second connection");
        let refused = request[7] == 2 && refusals.fetch_add(1, Ordering::Relaxed) < 2;
        Answer::Whole(if refused { reply(request, 1, &[0x82, 2]) } else { good(request) })
    };
    with_module(TWO_INPUTS, module, |remote| {
        for _ in 0..2 {
            let error = turn(remote, 3).unwrap_err();
            assert!(error.contains("io.inputs_at: refused with exception 2"), "{error}");
        }
        assert_eq!(turn(remote, 3), Ok(Inputs { bits: 0b10, encoder: None }));
    });
}

#[test]
fn nobody_there_is_an_error_and_not_a_wait() {
    let nobody = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let keys = format!("address = \"127.0.0.1\"\nport = {nobody}\ninputs = 1");
    let mut remote = Remote::new(&toml::from_str(&keys).unwrap()).unwrap();
    let error = turn(&mut remote, 0).unwrap_err();
    assert!(error.contains(&format!("127.0.0.1:{nobody}: connecting")), "{error}");
    assert!(remote.exchange(0, clock()).is_err());
}

#[test]
fn a_latched_safe_mode_is_no_turn_and_is_ended_only_where_the_config_says_so() {
    let latched = AtomicBool::new(true);
    let module = |_: usize, request: &[u8]| {
        Answer::Whole(match (request[7], latched.load(Ordering::Relaxed)) {
            (1, held) => reply(request, 1, &[1, 1, u8::from(held)]),
            // Written 0: the flag is cleared.
            (5, _) => {
                assert_eq!(request[8..12], [0, 81, 0, 0]);
                latched.store(false, Ordering::Relaxed);
                good(request)
            }
            (15, true) => reply(request, 1, &[0x8F, 4]),
            _ => good(request),
        })
    };
    let flag = format!("{TWO_INPUTS}\nsafe_mode = {{ at = 80 }}");
    with_module(&flag, module, |remote| {
        for _ in 0..2 {
            let error = turn(remote, 3).unwrap_err();
            assert!(
                error.contains("safe state") && error.contains("safe_mode.clear_at"),
                "{error}"
            );
        }
    });
    let clears = format!("{TWO_INPUTS}\nsafe_mode = {{ at = 80, clear_at = 81 }}");
    with_module(&clears, module, |remote| {
        let error = turn(remote, 3).unwrap_err();
        assert!(error.contains("told to go on"), "{error}");
        assert_eq!(turn(remote, 3), Ok(Inputs { bits: 0b10, encoder: None }));
    });
}

#[test]
fn what_cannot_be_meant_is_named() {
    for (keys, says) in [
        ("", "neither outputs, inputs nor encoder_at"),
        ("inputs = 33", "io.inputs = 33"),
        ("outputs = 33", "io.outputs = 33"),
        ("outputs = 2\noutputs_at = 65535", "beyond address 65535"),
        ("encoder_at = 65535", "io.encoder_at = 65535"),
        ("inputs = 1\ntimeout_ms = 4", "io.timeout_ms = 4"),
        ("inputs = 1\nport = 0", "io.port = 0"),
        ("outputs = 2\nsafe_on = [2]", "io.safe_on names output 2"),
    ] {
        let config: Config = toml::from_str(&format!("address = \"10.0.0.1\"\n{keys}")).unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(says), "{keys}: {error}");
    }
}
