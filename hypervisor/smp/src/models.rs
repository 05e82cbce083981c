//! The protocols under every interleaving and reordering: `RUSTFLAGS="--cfg loom" cargo test -p caisson-smp --release --lib
//! loom_`. A wake-up that is lost ends with everybody asleep, which loom reports.
//!
//! Models have counterparts with a step left out, which loom must refute: so the models would notice.

mod loom_models {
    use core::cell::Cell;
    // Not loom's: that one panics again where a model that must fail is taken apart.
    use std::sync::Arc;
    use std::vec::Vec;

    use loom::sync::{Condvar, Mutex, MutexGuard};
    use loom::thread;

    use crate::sync::{AtomicBool, AtomicU32, Ordering};
    use crate::*;

    /// A queue with entities of the same numbers in all queues, the first that is ready the best.
    struct Toy {
        cpu: u32,
        beacon: Arc<Beacon>,
        current: Option<u32>,
        ready: Vec<u32>,
        blocked: Vec<u32>,
    }

    impl Toy {
        fn show(&self) {
            self.beacon.show_waiting(self.ready.first().map_or(u64::MAX, |&entity| entity.into()));
        }

        fn pick(&mut self) -> Option<u32> {
            if self.current.is_none() && !self.ready.is_empty() {
                self.current = Some(self.ready.remove(0));
                self.show();
            }
            self.current
        }

        fn put(&mut self, entity: u32, place: &Place) {
            place.set(self.cpu, entity);
            self.ready.push(entity);
            self.show();
        }
    }

    impl Queue for Toy {
        type Work = u32;

        fn wake(&mut self, place: &Place) -> Option<Woken> {
            let at = self.blocked.iter().position(|&entity| Some(entity) == place.entity())?;
            let entity = self.blocked.remove(at);
            self.ready.push(entity);
            self.show();
            Some(Woken { look: self.current.is_none(), waits: true })
        }

        fn is_current(&self, place: &Place) -> bool {
            self.current.is_some() && self.current == place.entity()
        }

        fn block(&mut self, _: u64) {
            self.blocked.extend(self.current.take());
        }

        fn remove(&mut self, place: &Place) -> Option<u32> {
            let entity = place.entity()?;
            self.current.take_if(|current| *current == entity);
            self.ready.retain(|&other| other != entity);
            self.blocked.retain(|&other| other != entity);
            self.show();
            place.leave(self.cpu);
            Some(entity)
        }
    }

    struct Cpu {
        queue: Mutex<Toy>,
        beacon: Arc<Beacon>,
        pending: Pending,
        /// The interrupt that is held off while the CPU is in the hypervisor, and ends its sleep.
        interrupt: Mutex<bool>,
        sleeps: Condvar,
    }

    struct Machine {
        cpus: Vec<Cpu>,
        places: Vec<Place>,
    }

    /// The machine as one of its CPUs uses it.
    struct On<'a>(&'a Machine, u32);

    impl Cpus for On<'_> {
        type Queue = Toy;
        type Locked<'a>
            = MutexGuard<'a, Toy>
        where
            Self: 'a;

        fn lock(&self, cpu: u32) -> Option<MutexGuard<'_, Toy>> {
            Some(self.0.cpus.get(cpu as usize)?.queue.lock().unwrap())
        }

        fn kick(&self, cpu: u32, bits: u32) {
            let other = &self.0.cpus[cpu as usize];
            if cpu == self.1 {
                other.pending.set(bits);
            } else {
                other.pending.poke(bits, || other.interrupt());
            }
        }

        fn claim_idle(&self, _: u32, last: Option<u32>) -> Option<u32> {
            before_looking_for_idle();
            let from = last.map_or(0, |last| last + 1);
            (from..self.0.cpus.len() as u32).find(|&cpu| self.0.cpus[cpu as usize].beacon.claim())
        }
    }

    impl Callee for &Cpu {
        fn pending(&self) -> &Pending {
            &self.pending
        }

        fn interrupt(&self) {
            Cpu::interrupt(self);
        }
    }

    impl Cpu {
        fn interrupt(&self) {
            *self.interrupt.lock().unwrap() = true;
            self.sleeps.notify_one();
        }

        /// Sleeps until the next interrupt, unless there is something to look at.
        fn sleep(&self) {
            if self.pending.look() == 0 {
                let mut interrupt = self.interrupt.lock().unwrap();
                while !*interrupt {
                    interrupt = self.sleeps.wait(interrupt).unwrap();
                }
                *interrupt = false;
            }
        }
    }

    impl Machine {
        fn new(cpus: u32, places: u32) -> Self {
            let cpu = |cpu| {
                let beacon = Arc::new(Beacon::new());
                let toy = Toy {
                    cpu,
                    beacon: beacon.clone(),
                    current: None,
                    ready: Vec::new(),
                    blocked: Vec::new(),
                };
                Cpu {
                    queue: Mutex::new(toy),
                    beacon,
                    pending: Pending::new(),
                    interrupt: Mutex::new(false),
                    sleeps: Condvar::new(),
                }
            };
            Self { cpus: (0..cpus).map(cpu).collect(), places: (0..places).map(|_| Place::new(0)).collect() }
        }

        /// Changes a queue before the model begins.
        fn set(&self, cpu: u32, change: impl FnOnce(&mut Toy)) {
            let mut queue = self.cpus[cpu as usize].queue.lock().unwrap();
            change(&mut queue);
            for &entity in queue.current.iter().chain(&queue.ready).chain(&queue.blocked) {
                self.places[entity as usize].set(cpu, entity);
            }
            queue.show();
        }

        /// Takes over one that waits elsewhere and is held by no CPU.
        fn pull(&self, to: u32) -> bool {
            (0..self.cpus.len() as u32)
                .filter(|&from| from != to && self.cpus[from as usize].beacon.waiting() != u64::MAX)
                .any(|from| {
                    take_over(
                        &On(self, to),
                        from,
                        to,
                        |queue| {
                            let free = |entity: &u32| self.places[*entity as usize].holder().is_none();
                            let at = queue.ready.iter().position(free)?;
                            let entity = queue.ready.remove(at);
                            queue.show();
                            Some((entity, &self.places[entity as usize]))
                        },
                        |(_, place): &(u32, &Place)| place.leave(to),
                        |queue, (entity, place)| queue.put(entity, place),
                    )
                })
        }

        /// A CPU's life until it has something to run.
        fn until_it_runs(&self, cpu: u32) -> u32 {
            let this = &self.cpus[cpu as usize];
            loop {
                let _ = this.pending.take_all();
                let picked = this.queue.lock().unwrap().pick();
                if let Some(entity) = picked {
                    return entity;
                }
                idle(&this.beacon, || self.pull(cpu), || this.sleep());
            }
        }
    }

    fn model(check: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.max_branches = 20_000;
        builder.check(check);
    }

    /// A vCPU that has nothing to do blocks while another CPU leaves mail for it.
    fn block_against_wake(second_look: bool) {
        model(move || {
            let machine = Arc::new(Machine::new(2, 1));
            machine.set(0, |queue| queue.current = Some(0));
            let mail = Arc::new(AtomicU32::new(0));
            let waker = {
                let (machine, mail) = (machine.clone(), mail.clone());
                thread::spawn(move || {
                    if mail.fetch_or(1, Ordering::AcqRel) == 0 {
                        wake(&On(&machine, 1), &machine.places[0]);
                    }
                })
            };
            let this = &machine.cpus[0];
            loop {
                let _ = this.pending.take_all();
                let runs = this.queue.lock().unwrap().pick().is_some();
                if !runs {
                    this.sleep();
                } else if mail.swap(0, Ordering::AcqRel) != 0 {
                    break;
                } else {
                    let stays = || second_look && mail.load(Ordering::Acquire) != 0;
                    block(&On(&machine, 0), 0, &machine.places[0], u64::MAX, stays);
                }
            }
            waker.join().unwrap();
        });
    }

    #[test]
    fn loom_no_wake_up_is_lost_against_a_block() {
        block_against_wake(true);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_without_the_second_look_a_wake_up_is_lost() {
        block_against_wake(false);
    }

    /// Mail for a vCPU that is being moved: the CPU that takes it over finds it, or is told.
    #[test]
    fn loom_no_wake_up_is_lost_on_the_way_between_queues() {
        model(|| {
            let machine = Arc::new(Machine::new(3, 1));
            machine.set(0, |queue| queue.ready.push(0));
            let mail = Arc::new(AtomicU32::new(0));
            let waker = {
                let (machine, mail) = (machine.clone(), mail.clone());
                thread::spawn(move || {
                    if mail.fetch_or(1, Ordering::AcqRel) == 0 {
                        wake(&On(&machine, 2), &machine.places[0]);
                    }
                })
            };
            let this = &machine.cpus[1];
            assert!(machine.pull(1));
            loop {
                let _ = this.pending.take_all();
                let runs = this.queue.lock().unwrap().pick().is_some();
                if !runs {
                    this.sleep();
                } else if mail.swap(0, Ordering::AcqRel) != 0 {
                    break;
                } else {
                    let stays = || mail.load(Ordering::Acquire) != 0;
                    block(&On(&machine, 1), 1, &machine.places[0], u64::MAX, stays);
                }
            }
            waker.join().unwrap();
        });
    }

    /// CPU 1 runs somebody without end; another of its vCPUs is woken, while CPU 0 goes to sleep.
    #[test]
    fn loom_nobody_waits_beside_an_idle_cpu() {
        model(|| {
            let machine = Arc::new(Machine::new(3, 2));
            machine.set(1, |queue| {
                queue.current = Some(0);
                queue.blocked.push(1);
            });
            let waker = {
                let machine = machine.clone();
                thread::spawn(move || wake(&On(&machine, 2), &machine.places[1]))
            };
            assert_eq!(machine.until_it_runs(0), 1);
            waker.join().unwrap();
        });
    }

    /// A guest's bytes and the CPU that takes them, which rests when none are left: `fences` is whether the writer has its own.
    fn output_against_rest(fences: bool) {
        model(move || {
            let machine = Arc::new(Machine::new(2, 0));
            let put = Arc::new(AtomicU32::new(0));
            let writer = {
                let (machine, put) = (machine.clone(), put.clone());
                thread::spawn(move || {
                    let serial_cpu = &machine.cpus[0];
                    for _ in 0..2 {
                        put.fetch_add(1, Ordering::Release);
                        if fences {
                            before_looking_for_idle();
                        }
                        if serial_cpu.beacon.claim() {
                            serial_cpu.pending.poke(pending::SERIAL, || serial_cpu.interrupt());
                        }
                    }
                })
            };
            let this = &machine.cpus[0];
            let mut taken = 0;
            while taken < 2 {
                let _ = this.pending.take_all();
                let _ = this.beacon.end_idle();
                taken = put.load(Ordering::Acquire);
                this.beacon.set_idle();
                let has_output = put.load(Ordering::Acquire) != taken;
                if taken < 2 && !has_output {
                    this.sleep();
                }
            }
            writer.join().unwrap();
        });
    }

    #[test]
    fn loom_no_output_stays_behind_when_its_taker_rests() {
        output_against_rest(true);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_without_a_fence_output_stays_behind() {
        output_against_rest(false);
    }

    /// The same stores and looks without a fence between them: each side may miss the other.
    #[test]
    #[should_panic(expected = "waits beside")]
    fn loom_without_fences_one_waits_beside_an_idle_cpu() {
        model(|| {
            let (one, other) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let waker = {
                let (waits, idles) = (one.clone(), other.clone());
                thread::spawn(move || {
                    waits.store(true, Ordering::Release);
                    idles.load(Ordering::Acquire)
                })
            };
            other.store(true, Ordering::Release);
            let found = one.load(Ordering::Acquire);
            assert!(waker.join().unwrap() || found, "one waits beside an idle CPU");
        });
    }

    /// CPU 1 holds the registers of a vCPU that waits there, and puts them away, while the vCPU is woken and CPU 0 idles.
    fn unload_against_idle(under_lock: bool) {
        model(move || {
            let machine = Arc::new(Machine::new(3, 2));
            machine.set(1, |queue| {
                queue.current = Some(0);
                queue.blocked.push(1);
            });
            machine.places[1].hold(1);
            let waker = {
                let machine = machine.clone();
                thread::spawn(move || wake(&On(&machine, 2), &machine.places[1]))
            };
            let holder = {
                let machine = machine.clone();
                thread::spawn(move || {
                    machine.places[1].release();
                    if under_lock && !machine.cpus[1].queue.lock().unwrap().ready.is_empty() {
                        offer(&On(&machine, 1), 1);
                    }
                })
            };
            assert_eq!(machine.until_it_runs(0), 1);
            waker.join().unwrap();
            holder.join().unwrap();
        });
    }

    #[test]
    fn loom_one_that_is_let_go_is_offered() {
        unload_against_idle(true);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_one_that_is_let_go_without_a_word_waits() {
        unload_against_idle(false);
    }

    /// What a CPU does with the guest's vCPU 0 in one round: takes it out when the guest has ended, else lets it block.
    fn turn(machine: &Machine, cpu: u32, ending: &AtomicBool, left: &AtomicU32, second_look: bool) {
        let this = &machine.cpus[cpu as usize];
        let _ = this.pending.take_all();
        if this.queue.lock().unwrap().pick().is_none() {
            return;
        }
        if ending.load(Ordering::Acquire) {
            let removed = this.queue.lock().unwrap().remove(&machine.places[0]);
            left.fetch_add(u32::from(removed.is_some()), Ordering::AcqRel);
        } else {
            let stays = || second_look && ending.load(Ordering::Acquire);
            block(&On(machine, cpu), cpu, &machine.places[0], u64::MAX, stays);
        }
    }

    /// The guest of vCPU 0 ends, on CPU 2, while CPU 1 takes the vCPU over from CPU 0, or CPU 0 runs it.
    fn end_against_all(second_look: bool) {
        model(move || {
            let machine = Arc::new(Machine::new(3, 1));
            machine.set(0, |queue| queue.ready.push(0));
            let ending = Arc::new(AtomicBool::new(false));
            let left = Arc::new(AtomicU32::new(0));
            let others = [0, 1].map(|cpu| {
                let (machine, ending, left) = (machine.clone(), ending.clone(), left.clone());
                thread::spawn(move || {
                    if cpu == 1 {
                        machine.pull(1);
                    }
                    turn(&machine, cpu, &ending, &left, second_look);
                })
            });
            ending.store(true, Ordering::Release);
            let withdrawn = withdraw(&On(&machine, 2), &machine.places[0]);
            left.fetch_add(u32::from(withdrawn.is_some()), Ordering::AcqRel);
            for other in others {
                other.join().unwrap();
            }
            // Whoever is told, or still has it, goes on.
            turn(&machine, 0, &ending, &left, second_look);
            turn(&machine, 1, &ending, &left, second_look);
            assert_eq!(left.load(Ordering::Acquire), 1, "taken out exactly once");
            assert_eq!(machine.places[0].entity(), None);
        });
    }

    #[test]
    fn loom_a_guest_ends_against_moves_and_blocks() {
        end_against_all(true);
    }

    #[test]
    #[should_panic(expected = "exactly once")]
    fn loom_without_the_second_look_a_vcpu_of_an_ended_guest_sleeps_on() {
        end_against_all(false);
    }

    /// What two CPUs know of a domain of one vCPU.
    struct Shot {
        changes: Changes,
        seen: Seen,
        place: Place,
    }

    impl Shot {
        fn new() -> Self {
            Self { changes: Changes::new(), seen: Seen::new(), place: Place::new(1) }
        }

        /// CPU 0 has the one that holds the vCPU leave its guest.
        fn shoot(&self, machine: &Machine, calls: &Calls<()>) {
            shoot_down(
                &self.changes,
                |cpu| self.place.holder() == Some(cpu),
                |wanted| {
                    let others = (1..machine.cpus.len() as u32).filter(|&cpu| wanted(cpu));
                    let others = others.map(|cpu| &machine.cpus[cpu as usize]);
                    calls.call((), &machine.cpus[0].pending, others, |()| {});
                },
            );
        }
    }

    /// CPU 1 takes a vCPU up, with old translations cached, and runs it twice, while CPU 0 changes the tables and frees what
    /// they led to.
    fn shoot_against_entry(looks: bool, settles: bool, called: bool) {
        model(move || {
            let machine = Arc::new(Machine::new(2, 0));
            let calls = Arc::new(Calls::new());
            let vcpu = Arc::new(Shot::new());
            let table = Arc::new(AtomicU32::new(1));
            let (freed, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let other = {
                let (machine, calls, vcpu) = (machine.clone(), calls.clone(), vcpu.clone());
                let (table, freed, done) = (table.clone(), freed.clone(), done.clone());
                thread::spawn(move || {
                    let this = &machine.cpus[1].pending;
                    let cached = Cell::new(Some(1));
                    let catch_up = || vcpu.changes.catch_up(&vcpu.seen, || cached.set(None));
                    vcpu.place.hold(1);
                    if looks {
                        catch_up();
                    }
                    for _ in 0..2 {
                        calls.serve(this, |()| {
                            if settles {
                                catch_up();
                            }
                        });
                        if this.look() != 0 {
                            continue;
                        }
                        let used = cached.get().unwrap_or_else(|| table.load(Ordering::Relaxed));
                        cached.set(Some(used));
                        assert!(used != 1 || !freed.load(Ordering::Relaxed), "an old translation is used");
                    }
                    vcpu.place.release();
                    while !done.load(Ordering::Acquire) {
                        calls.serve(this, |()| {});
                        thread::yield_now();
                    }
                })
            };
            table.store(2, Ordering::Relaxed);
            if called {
                vcpu.shoot(&machine, &calls);
            } else {
                shoot_down(&vcpu.changes, |_| false, |_| {});
            }
            freed.store(true, Ordering::Relaxed);
            done.store(true, Ordering::Release);
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_a_shoot_down_leaves_no_old_translation() {
        shoot_against_entry(true, true, true);
    }

    #[test]
    #[should_panic(expected = "old translation")]
    fn loom_without_the_look_an_old_translation_is_used() {
        shoot_against_entry(false, true, true);
    }

    #[test]
    #[should_panic(expected = "old translation")]
    fn loom_without_catching_up_an_old_translation_is_used() {
        shoot_against_entry(true, false, true);
    }

    #[test]
    #[should_panic(expected = "old translation")]
    fn loom_without_the_call_an_old_translation_is_used() {
        shoot_against_entry(true, true, false);
    }
}
