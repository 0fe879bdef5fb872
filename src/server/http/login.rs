//! Passwords of HTTP clients. To check one costs 60 ms and more of CPU, on purpose, so it is done in a thread of its own, one at
//! a time; after a wrong one it rests three times as long, which leaves an attacker a quarter of one CPU. What was found is
//! remembered: a scrape with a password once found right costs a hash, and waits for nobody.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::rand::rand_bytes;
use openssl::sha::Sha256;

use crate::config::web::{Hash, Unique};
use crate::server::listen;

/// Right ones remembered. Only who knows a password makes one.
const RIGHT: usize = 256;
/// Wrong ones remembered.
const WRONG: usize = 256;
/// After a wrong one, rest so many times as long as it took.
const REST: u32 = 3;
/// Who waits for a turn, by address and user: the last turn of each. More are forgotten.
const TURNS: usize = 1024;
/// Longest Authorization header that is looked at: longer than any name and password that bcrypt tells apart.
const HEADER_MAX: usize = 1024;

/// Passwords that may wait to be checked, and how many of them from one network.
const WAITING: usize = 32;
const WAITING_EACH: usize = 8;

/// From where, and for whom if there is such a user.
type Turn = (IpAddr, Option<String>);

/// Stands for a name, a password and the hash that it is compared with; nobody can tell them from it.
type Digest = [u8; 32];

/// A name and a password, with what they are compared with.
#[derive(Clone)]
pub struct Attempt {
    digest: Digest,
    password: Vec<u8>,
    hash: Hash,
    /// These take turns.
    turn: Turn,
}

/// Whether one more may wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// There is room.
    Free,
    /// Another has to go, this one.
    Of(u64),
    /// Whoever comes has more waiting than others.
    None,
}

/// The place of one who comes now beside those who wait, the newest of whom has the highest number. Where all are taken, it is
/// given by whoever has most of them: within a network a user, or those without one, else a network. So who floods, behind
/// whatever address and under whatever names, puts out its own.
pub fn place<'a>(waiting: impl Iterator<Item = (u64, &'a Attempt)>, new: &Attempt) -> Place {
    let all: Vec<(u64, &Turn)> = waiting.map(|(id, attempt)| (id, &attempt.turn)).collect();
    let beside: Vec<(u64, &Turn)> = all.iter().filter(|(_, turn)| turn.0 == new.turn.0).copied().collect();
    if beside.len() >= WAITING_EACH {
        most(&beside, &new.turn, |a, b| a.1 == b.1)
    } else if all.len() >= WAITING {
        most(&all, &new.turn, |a, b| a.0 == b.0)
    } else {
        Place::Free
    }
}

fn most(taken: &[(u64, &Turn)], new: &Turn, same: impl Fn(&Turn, &Turn) -> bool) -> Place {
    let of = |turn: &Turn| taken.iter().filter(|(_, other)| same(turn, other)).count();
    match taken.iter().map(|(id, turn)| (of(turn), *id)).max() {
        Some((places, id)) if places > of(new) + 1 => Place::Of(id),
        _ => Place::None,
    }
}

/// What is known of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Name and password are right.
    Right,
    /// They are not.
    Wrong,
    /// It has to be checked.
    Unknown,
}

/// The checks.
pub struct Login {
    /// Without it a digest says nothing; made when it is first needed.
    salt: Option<[u8; 32]>,
    right: HashSet<Digest>,
    wrong: VecDeque<Digest>,
    turns: HashMap<Turn, u64>,
    turn: u64,
    running: Option<Digest>,
    /// Not to check before.
    rest_until: Instant,
    results: Receiver<(Digest, bool, Duration)>,
    give: Sender<(Digest, bool, Duration)>,
    wake: UnixStream,
    woken: UnixStream,
}

impl Login {
    /// Nothing is known yet.
    pub fn new() -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let (give, results) = mpsc::channel();
        Ok(Self {
            salt: None,
            right: HashSet::new(),
            wrong: VecDeque::new(),
            turns: HashMap::new(),
            turn: 0,
            running: None,
            rest_until: Instant::now(),
            results,
            give,
            wake,
            woken,
        })
    }

    /// Becomes readable when there is a result.
    pub fn socket(&self) -> &UnixStream {
        &self.woken
    }

    /// What the value of an Authorization header means; `None` if it is none that could be right.
    pub fn attempt(&mut self, header: &[u8], users: &Unique<Hash>, from: IpAddr) -> Option<Attempt> {
        let (name, password) = credentials(header)?;
        let known = users.0.get(&name);
        // As much work for a name that nobody has: the time does not tell which do exist.
        let dearest = || users.0.values().max_by_key(|hash| hash.as_str().get(4..6)).map(Hash::of_nobody);
        let hash = known.cloned().or_else(dearest)?;
        let salt = self.salt()?;
        let mut sha = Sha256::new();
        sha.update(&salt);
        for part in [name.as_bytes(), hash.as_str().as_bytes(), &password] {
            sha.update(&(part.len() as u64).to_le_bytes());
            sha.update(part);
        }
        let turn = (listen::network(from), known.map(|_| name));
        Some(Attempt { digest: sha.finish(), password, hash, turn })
    }

    /// What is known of it.
    pub fn known(&self, attempt: &Attempt) -> Known {
        if self.right.contains(&attempt.digest) {
            Known::Right
        } else if self.wrong.contains(&attempt.digest) {
            Known::Wrong
        } else {
            Known::Unknown
        }
    }

    /// Begins to check one of those who wait, if none is being checked: of those whose turn is longest ago the first.
    pub fn check<'a>(&mut self, waiting: impl Iterator<Item = &'a Attempt>, now: Instant) -> io::Result<()> {
        if self.running.is_some() || now < self.rest_until {
            return Ok(());
        }
        let last = |attempt: &&Attempt| self.turns.get(&attempt.turn).copied().unwrap_or(0);
        let Some(next) = waiting.min_by_key(last) else { return Ok(()) };
        self.turn += 1;
        if self.turns.len() >= TURNS {
            self.turns.clear();
        }
        self.turns.insert(next.turn.clone(), self.turn);
        let (attempt, give, mut wake) = (next.clone(), self.give.clone(), self.wake.try_clone()?);
        let digest = attempt.digest;
        let check = move || {
            let begun = Instant::now();
            let right = catch_unwind(AssertUnwindSafe(|| bcrypt::verify(&attempt.password, attempt.hash.as_str())));
            // Whoever waits may have gone, and a full socket wakes as well.
            let _ = give.send((attempt.digest, matches!(right, Ok(Ok(true))), begun.elapsed()));
            let _ = wake.write(&[0]);
        };
        thread::Builder::new().name("http-login".into()).spawn(check)?;
        self.running = Some(digest);
        Ok(())
    }

    /// When the next can be checked, if none is being checked.
    pub fn next_at(&self) -> Option<Instant> {
        self.running.is_none().then_some(self.rest_until)
    }

    /// Takes over what was found meanwhile.
    pub fn take_results(&mut self) {
        let mut bytes = [0; 16];
        while matches!((&self.woken).read(&mut bytes), Ok(1..)) {}
        while let Ok((digest, right, took)) = self.results.try_recv() {
            self.running = None;
            if right {
                if self.right.len() >= RIGHT {
                    self.right.clear();
                }
                self.right.insert(digest);
                continue;
            }
            if self.wrong.len() >= WRONG {
                self.wrong.pop_front();
            }
            self.wrong.push_back(digest);
            self.rest_until = Instant::now() + took * REST;
        }
    }

    fn salt(&mut self) -> Option<[u8; 32]> {
        if self.salt.is_none() {
            let mut salt = [0; 32];
            rand_bytes(&mut salt).ok()?;
            self.salt = Some(salt);
        }
        self.salt
    }
}

/// Name and password of `Basic …`.
fn credentials(header: &[u8]) -> Option<(String, Vec<u8>)> {
    let header = std::str::from_utf8(header).ok().filter(|h| h.len() <= HEADER_MAX)?;
    let (scheme, encoded) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let mut name = STANDARD.decode(encoded.trim()).ok()?;
    let colon = name.iter().position(|b| *b == b':')?;
    let password = name.split_off(colon + 1);
    name.pop();
    Some((String::from_utf8(name).ok()?, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(all: &[(&str, &str)]) -> Unique<Hash> {
        let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
        let yaml: String = all.iter().map(|(name, password)| format!("{name:?}: {}\n", hash(password))).collect();
        serde_yaml::from_str(&yaml).unwrap()
    }

    fn basic(text: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(text)).into_bytes()
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Checks one of these and waits for the result.
    fn check(login: &mut Login, attempts: &[&Attempt]) {
        login.check(attempts.iter().copied(), login.rest_until).unwrap();
        while login.running.is_some() {
            login.take_results();
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_was_found_is_known_afterwards_until_the_hash_changes() {
        let users = users(&[("ann", "a:b"), ("Ünï", "pässword")]);
        let mut login = Login::new().unwrap();
        for (given, known) in [
            ("ann:a:b", Known::Right),
            ("Ünï:pässword", Known::Right),
            ("ann:a", Known::Wrong),
            ("ann:", Known::Wrong),
            ("nobody:a:b", Known::Wrong),
            (":a:b", Known::Wrong),
        ] {
            let attempt = login.attempt(&basic(given), &users, HERE).unwrap();
            assert_eq!(login.known(&attempt), Known::Unknown, "{given}");
            check(&mut login, &[&attempt]);
            assert_eq!(login.known(&attempt), known, "{given}");
        }
        let others = self::users(&[("ann", "a:b")]);
        let attempt = login.attempt(&basic("ann:a:b"), &others, HERE).unwrap();
        assert_eq!(login.known(&attempt), Known::Unknown, "another hash of the same password");
    }

    #[test]
    fn what_is_no_header_of_ours_is_no_attempt() {
        let users = users(&[("a", "b")]);
        let mut login = Login::new().unwrap();
        for header in [
            &b""[..],
            b"Basic",
            b"Basic ",
            b"Basic !",
            b"Bearer YTpi",
            b"Basic YQ==",
            b"Basic /zpi",
            b"\xff\xfe",
            &[b'B'; 64 << 10],
            &basic(&format!("a:{}", "x".repeat(1024))),
        ] {
            assert!(login.attempt(header, &users, HERE).is_none(), "{:?}", String::from_utf8_lossy(header));
        }
        assert!(login.attempt(b"bAsIc YTpi", &users, HERE).is_some());
    }

    #[test]
    fn those_who_try_often_wait_for_those_who_do_not() {
        let users = users(&[("a", "b")]);
        let mut login = Login::new().unwrap();
        let there = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
        let mut wrong = |n: u32, name: &str| login.attempt(&basic(&format!("{name}:{n}")), &users, there).unwrap();
        let flood = [wrong(1, "a"), wrong(2, "a"), wrong(3, "a")];
        let names = [wrong(1, "x"), wrong(1, "y")];
        let honest = login.attempt(&basic("a:b"), &users, HERE).unwrap();
        // Whoever floods, and under whatever names, has had a turn each; then the others have theirs.
        check(&mut login, &[&flood[0], &flood[1], &names[0], &names[1], &honest]);
        assert_eq!(login.known(&flood[0]), Known::Wrong);
        check(&mut login, &[&flood[1], &flood[2], &names[0], &names[1], &honest]);
        assert_eq!(login.known(&names[0]), Known::Wrong);
        check(&mut login, &[&flood[1], &flood[2], &names[1], &honest]);
        assert_eq!(login.known(&honest), Known::Right);
        assert!(login.wrong.len() == 2 && login.right.len() == 1);
    }

    #[test]
    fn who_floods_makes_room_for_others() {
        let attempt = |from: [u8; 4], user: Option<&str>| Attempt {
            digest: [0; 32],
            password: Vec::new(),
            hash: users(&[("a", "b")]).0["a"].clone(),
            turn: (IpAddr::from(from), user.map(str::to_owned)),
        };
        let (here, there) = ([127, 0, 0, 1], [192, 0, 2, 1]);
        let mut waiting = Vec::new();
        let at = |waiting: &[Attempt], new: &Attempt| place((0..).zip(waiting), new);
        while at(&waiting, &attempt(there, None)) == Place::Free {
            waiting.push(attempt(there, None));
        }
        assert_eq!(waiting.len(), WAITING_EACH);
        assert_eq!(at(&waiting, &attempt(there, None)), Place::None);
        assert_eq!(at(&waiting, &attempt(here, None)), Place::Free);
        // A user behind the same address: the newest of the flood goes.
        assert_eq!(at(&waiting, &attempt(there, Some("a"))), Place::Of(7));
        waiting[7] = attempt(there, Some("a"));
        assert_eq!(at(&waiting, &attempt(there, None)), Place::None, "it does not come back for that");
        // All places are taken, by few networks.
        for n in 2..=4 {
            (0..WAITING_EACH).for_each(|_| waiting.push(attempt([192, 0, 2, n], None)));
        }
        assert_eq!(waiting.len(), WAITING);
        assert_eq!(at(&waiting, &attempt(here, None)), Place::Of(31));
        // Or by one each.
        let one_each: Vec<_> = (0..WAITING as u8).map(|n| attempt([198, 51, 100, n], None)).collect();
        assert_eq!(at(&one_each, &attempt(here, Some("a"))), Place::None);
    }

    #[test]
    fn wrong_ones_are_followed_by_a_rest_and_right_ones_are_not() {
        let users = users(&[("a", "b")]);
        let mut login = Login::new().unwrap();
        let right = login.attempt(&basic("a:b"), &users, HERE).unwrap();
        let before = login.rest_until;
        check(&mut login, &[&right]);
        assert_eq!(login.rest_until, before);
        let wrong = login.attempt(&basic("a:c"), &users, HERE).unwrap();
        check(&mut login, &[&wrong]);
        assert!(login.rest_until > before);
        let other = login.attempt(&basic("a:d"), &users, HERE).unwrap();
        login.check([&other].into_iter(), before).unwrap();
        assert!(login.running.is_none(), "it rests");
    }
}
