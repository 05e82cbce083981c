//! The steps of an end.

/// Whether others use something of a domain that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold<L> {
    /// They do. Who changes that has been asked to, and has [`End::step`] called again: also where that is before this is returned.
    Used,
    /// Nobody does.
    Free,
    /// Nobody uses it, but devices of others may reach its memory for ever, for that reason.
    Lost(L),
}

/// What the devices of a domain that has ended may still do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Nothing.
    Nothing,
    /// Whatever they could before, for ever.
    Forever,
}

/// What an end does to the machine. Everything is called in the order in which it stands here, but that a few things come
/// several times, and that of [`free`](Self::free) and [`keep`](Self::keep) there is one.
pub trait Course {
    /// All that exists of a domain while it lives.
    type Life;
    /// Its memory, and whatever goes with it.
    type Memory;
    /// A reset of its functions, which has begun.
    type Reset;
    /// A time.
    type Time;
    /// Why memory is lost.
    type Loss;

    /// The domain gives back what it has of others', and what else can go before its memory. Whether that is all; else this is
    /// called again.
    fn leave(&mut self) -> bool;

    /// Lets go of it what others do not use any more.
    fn let_go(&mut self) -> Hold<Self::Loss>;

    /// Takes what exists of it, which nobody finds from here on. `None` while some CPU is about to let go of it.
    fn take(&mut self) -> Option<Self::Life>;

    /// Tells its functions to do nothing any more. The reset that is to follow, if it owns any.
    fn stop(&mut self, life: &mut Self::Life) -> Option<Self::Reset>;

    /// Keeps its functions from all memory, where there is an IOMMU.
    ///
    /// # Errors
    /// Why they may reach it for ever.
    fn block(&mut self, life: &mut Self::Life) -> Result<(), Self::Loss>;

    /// Takes it apart, all but its memory.
    fn take_apart(&mut self, life: Self::Life) -> Self::Memory;

    /// Does what is due of the reset. When to come again; `None` when it is done.
    fn reset(&mut self, reset: &mut Self::Reset) -> Option<Self::Time>;

    /// Tells whom it served, once, that it does not serve them any more.
    fn tell_guests(&mut self, reach: Reach);

    /// Scrubs some of the memory. Whether that was all.
    fn scrub(&mut self, memory: &mut Self::Memory) -> bool;

    /// Gives the memory back: it has been scrubbed.
    fn free(&mut self, memory: Self::Memory);

    /// Gives it to nobody for ever, and says so.
    fn keep(&mut self, memory: Self::Memory, why: Self::Loss);
}

/// How far an end is, with what the domain still has.
#[derive(Debug)]
pub enum End<M, R, L> {
    /// All its vCPUs are out of the queues; others may use something of it.
    Used,
    /// Its functions, which reach nothing any more where there is an IOMMU, are being reset. Nobody has its memory before that;
    /// nor afterwards, if that is lost.
    Resets(M, R, Option<L>),
    /// Its memory is being scrubbed.
    Burial(M),
}

/// The end of what a course is for.
type EndOf<C> = End<<C as Course>::Memory, <C as Course>::Reset, <C as Course>::Loss>;

/// What a step came to.
#[derive(Debug)]
#[must_use]
pub enum Step<E, T> {
    /// There is more to do.
    More(E),
    /// There is nothing to do before then.
    Wait(E, T),
    /// [`Hold::Used`]: it goes on from [`End::Used`], maybe on another CPU already.
    Asked,
    /// [`End::Used`] still: some CPU is about to let go of it.
    Later,
    /// It is over.
    Over(Outcome),
}

/// What became of the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is free.
    Freed,
    /// It is lost.
    Lost,
}

impl<M, R, L> End<M, R, L> {
    /// Does the next thing that is to be done.
    pub fn step<C>(self, course: &mut C) -> Step<Self, C::Time>
    where
        C: Course<Memory = M, Reset = R, Loss = L>,
    {
        match self {
            Self::Used => begin(course),
            Self::Resets(memory, mut reset, lost) => match course.reset(&mut reset) {
                Some(until) => Step::Wait(Self::Resets(memory, reset, lost), until),
                None => quiet(course, memory, lost),
            },
            Self::Burial(mut memory) => {
                if !course.scrub(&mut memory) {
                    return Step::More(Self::Burial(memory));
                }
                course.free(memory);
                Step::Over(Outcome::Freed)
            }
        }
    }
}

/// Takes a domain apart that nobody uses.
fn begin<C: Course>(course: &mut C) -> Step<EndOf<C>, C::Time> {
    if !course.leave() {
        return Step::More(End::Used);
    }
    let lost = match course.let_go() {
        Hold::Used => return Step::Asked,
        Hold::Free => None,
        Hold::Lost(why) => Some(why),
    };
    let Some(mut life) = course.take() else { return Step::Later };
    let reset = course.stop(&mut life);
    let blocked = course.block(&mut life);
    let memory = course.take_apart(life);
    match (blocked, reset) {
        (Err(why), _) => {
            course.tell_guests(Reach::Forever);
            course.keep(memory, why);
            Step::Over(Outcome::Lost)
        }
        (Ok(()), Some(reset)) => Step::More(End::Resets(memory, reset, lost)),
        (Ok(()), None) => quiet(course, memory, lost),
    }
}

/// Goes on with a domain whose functions do nothing any more.
fn quiet<C: Course>(course: &mut C, memory: C::Memory, lost: Option<C::Loss>) -> Step<EndOf<C>, C::Time> {
    course.tell_guests(Reach::Nothing);
    match lost {
        Some(why) => {
            course.keep(memory, why);
            Step::Over(Outcome::Lost)
        }
        None => Step::More(End::Burial(memory)),
    }
}
