// Lets the runtime take, on mock chips, the paths that only hardware takes. For tests; preloaded behind
// ttalloc's own library.
//
// A mock chip has no command queue in host memory, so whatever writes to one crashes: those writers
// return at once here. And its programs get no binary, since nothing would load it: here they get one,
// of zeros, for which the runtime then allocates a buffer as it does on hardware. Everything else is
// the runtime's own code.
//
// The writers return nothing, and their arguments are the caller's to clean up, so that one definition
// without any fits all. Their names are those of releases 0.66.0 to 0.81.1.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <dlfcn.h>

#define WRITES_NOTHING(number, name)              \
    extern "C" void nothing##number() asm(name);  \
    extern "C" __attribute__((visibility("default"))) void nothing##number() {}

// trace_dispatch::issue_trace_commands
WRITES_NOTHING(0, "_ZN2tt8tt_metal14trace_dispatch20issue_trace_commandsEPNS0_7IDeviceERNS0_19SystemMemoryManagerERKNS1_21TraceDispatchMetadataEhRKSt5arrayIjLm8EENS_7xy_pairE")
WRITES_NOTHING(1, "_ZN2tt8tt_metal14trace_dispatch20issue_trace_commandsEPNS0_11distributed10MeshDeviceERNS0_19SystemMemoryManagerERKNS1_21TraceDispatchMetadataEhRKSt5arrayIjLm8EENS_7xy_pairE")
// program_dispatch::reset_worker_dispatch_state_on_device
WRITES_NOTHING(2, "_ZN2tt8tt_metal16program_dispatch37reset_worker_dispatch_state_on_deviceEPNS0_7IDeviceERNS0_19SystemMemoryManagerEhNS_7xy_pairERKSt5arrayIjLm8EEb")
WRITES_NOTHING(3, "_ZN2tt8tt_metal16program_dispatch37reset_worker_dispatch_state_on_deviceEPNS0_11distributed10MeshDeviceERNS0_19SystemMemoryManagerEhNS_7xy_pairERKSt5arrayIjLm8EEb")
WRITES_NOTHING(4, "_ZN2tt8tt_metal16program_dispatch37reset_worker_dispatch_state_on_deviceEPNS0_11distributed10MeshDeviceERNS0_19SystemMemoryManagerEhNS_7xy_pairERKSt5arrayIjLm8EEbSt4spanIKSt6vectorIjN4ttsl17aligned_allocatorIjLm16EEEELm18446744073709551615EE")
// program_dispatch::set_num_worker_sems_on_dispatch
WRITES_NOTHING(5, "_ZN2tt8tt_metal16program_dispatch31set_num_worker_sems_on_dispatchEPNS0_7IDeviceERNS0_19SystemMemoryManagerEhj")
WRITES_NOTHING(6, "_ZN2tt8tt_metal16program_dispatch31set_num_worker_sems_on_dispatchERNS0_19SystemMemoryManagerEhjSt4spanIKjLm18446744073709551615EE")
// program_dispatch::set_go_signal_noc_data_on_dispatch
WRITES_NOTHING(7, "_ZN2tt8tt_metal16program_dispatch34set_go_signal_noc_data_on_dispatchEPNS0_7IDeviceERKSt6vectorIjN4ttsl17aligned_allocatorIjLm16EEEERNS0_19SystemMemoryManagerEh")
WRITES_NOTHING(8, "_ZN2tt8tt_metal16program_dispatch34set_go_signal_noc_data_on_dispatchERKSt6vectorIjN4ttsl17aligned_allocatorIjLm16EEEERNS0_19SystemMemoryManagerEh")
// program_dispatch::set_core_go_message_mapping_on_device
WRITES_NOTHING(9, "_ZN2tt8tt_metal16program_dispatch37set_core_go_message_mapping_on_deviceEPNS0_7IDeviceERKSt6vectorISt4pairINS0_12CoreRangeSetEjESaIS7_EERNS0_19SystemMemoryManagerEh")
WRITES_NOTHING(10, "_ZN2tt8tt_metal16program_dispatch37set_core_go_message_mapping_on_deviceEPNS0_6DeviceERKSt6vectorISt4pairINS0_12CoreRangeSetEjESaIS7_EERNS0_19SystemMemoryManagerEh")

namespace {

constexpr char POPULATE[] = "_ZN2tt8tt_metal6detail11ProgramImpl22populate_dispatch_dataEPNS0_7IDeviceE";
constexpr char TRANSFER_INFO[] = "_ZNK2tt8tt_metal6detail11ProgramImpl25get_program_transfer_infoEv";
// Where ProgramTransferInfo has its `std::vector<std::uint32_t> binary_data`, in bytes.
constexpr std::size_t BINARY_DATA = 32;
// What a program's binary gets, in words: the binary of a small op has some kilobytes.
constexpr std::size_t WORDS = 2048;

// The runtime's own function. Python's modules load the runtime locally, so RTLD_NEXT finds nothing.
void* find(char const* name) {
    void* runtime = dlopen("libtt_metal.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found = runtime == nullptr ? nullptr : dlsym(runtime, name);
    if (found == nullptr) {
        std::fprintf(stderr, "the tests' hardware.cpp does not find %s in libtt_metal.so\n", name);
        std::abort();
    }
    return found;
}

}  // namespace

extern "C" void populate_dispatch_data(void* program, void* device) asm("_ZN2tt8tt_metal6detail11ProgramImpl22populate_dispatch_dataEPNS0_7IDeviceE");

extern "C" __attribute__((visibility("default"))) void populate_dispatch_data(void* program, void* device) {
    static auto* const populate = reinterpret_cast<void (*)(void*, void*)>(find(POPULATE));
    static auto* const info = reinterpret_cast<char* (*)(void*)>(find(TRANSFER_INFO));
    populate(program, device);
    auto* binary = reinterpret_cast<std::vector<std::uint32_t>*>(info(program) + BINARY_DATA);
    if (binary->empty()) {
        binary->resize(WORDS);
    }
}
