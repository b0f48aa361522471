// The system's libzmq is not built for the thread sanitizer, which therefore can't see how its
// threads hand messages to each other. Races with none of libzmq's frames are still reported.
extern "C" const char* __tsan_default_suppressions();

extern "C" const char* __tsan_default_suppressions() {
  return "race:libzmq.so\n";
}
